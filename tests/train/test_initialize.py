"""run.initialize_from: the weights and thresholds of another run, on any layout, and nothing else of it."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffmoe_scale.checkpoint.stored import FAMILIES, export_metadata, open_weights
from diffmoe_scale.config.identity import model_settings
from diffmoe_scale.convert.export import select_weights, write_export
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.train import initialize as module
from diffmoe_scale.train.engine import Engine
from diffmoe_scale.train.initialize import begin_from_weights
from tests.convert.runs import make_run
from tests.ranks import run_on_ranks
from tests.train.runs import RankRun, Run, assemble, copy_state, tiny_config, tiny_pipeline
from tests.train.whole_runs import train_runs

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, State]:
    folder = tmp_path_factory.mktemp("source") / "run"
    return folder, make_run(folder)


def begin(context: ParallelContext, settings: list[str], step: int = 0) -> tuple[RankRun, list[str]]:
    """The state of a new engine that was filled, and what was logged."""
    expert_parallel = f"parallel.expert_parallel={context.expert_parallel}"
    config = tiny_config([*settings, "run.micro_batch=1", expert_parallel])
    pipeline = tiny_pipeline(config, context.megatron_groups)
    engine = Engine(pipeline.denoiser, config, context)
    messages: list[str] = []
    handler = logging.Handler()
    # The shortest handler.
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    module.logger.addHandler(handler)
    module.logger.setLevel(logging.INFO)
    identity = model_settings(config, tokenizer=Path("none"), frozen=pipeline.frozen)
    begin_from_weights(engine, config, context, step=step, settings=identity)
    module.logger.removeHandler(handler)
    return RankRun(Run(), copy_state(engine)), messages


def begin_or_say(context: ParallelContext, settings: list[str]) -> str:
    try:
        begin(context, settings)
    except ValueError as error:
        return str(error)
    return ""


def state_of(layout: tuple[int, int], *settings: str) -> tuple[dict[str, np.ndarray], list[str]]:
    world_size, expert_parallel = layout
    ranks = run_on_ranks(begin, world_size, list(settings), expert_parallel=expert_parallel)
    return assemble([rank for rank, _ in ranks]).state, ranks[0][1]


def assert_families(got: dict[str, np.ndarray], expected: State, sources: dict[str, str]) -> None:
    for family, of in sources.items():
        names = [name.partition("/")[2] for name in expected if name.startswith(f"{of}/")]
        assert {f"{family}/{name}" for name in names} == {key for key in got if key.startswith(f"{family}/")}
        for name in names:
            tensor = expected[f"{of}/{name}"].reshape(-1).float().numpy()
            np.testing.assert_array_equal(got[f"{family}/{name}"], tensor, err_msg=name)


@pytest.mark.parametrize("layout", [(1, 1), (4, 2)])
def test_both_families_and_thresholds_on_any_layout(
    source: tuple[Path, State], layout: tuple[int, int]
) -> None:
    folder, expected = source
    got, messages = state_of(layout, f"run.initialize_from={folder}")
    assert_families(got, expected, {family: family for family in FAMILIES})
    assert not any(got[name].any() for name in got if name.startswith("exp_avg"))
    assert "weights from its master, averages from its ema, thresholds kept" in messages[0]
    assert len(messages) == 1


@pytest.mark.parametrize("weights", ["ema", "master"])
def test_one_family_is_the_start_of_both(source: tuple[Path, State], tmp_path: Path, weights: str) -> None:
    folder, expected = source
    write_export(select_weights(open_weights(folder), weights), tmp_path / "a.safetensors")
    got, messages = state_of((1, 1), f"run.initialize_from={tmp_path / 'a.safetensors'}")
    assert_families(got, expected, {"master": weights, "ema": weights, "buffer": "buffer"})
    assert f"weights from its {weights}, averages from its {weights}" in messages[0]


def test_a_model_of_bf16_begins_with_fp32_masters(source: tuple[Path, State]) -> None:
    folder, expected = source
    got, _ = state_of((1, 1), f"run.initialize_from={folder}", "model.precision=bf16")
    assert_families(got, expected, {"master": "master"})


def test_a_difference_in_meaning_is_said(source: tuple[Path, State]) -> None:
    _, messages = state_of((1, 1), f"run.initialize_from={source[0]}", "moe.gate=sigmoid")
    assert messages[1] == (
        "settings differ from those of run.initialize_from: moe.gate was 'softmax', is 'sigmoid'"
    )


def test_other_places_are_said_and_how_to_keep_them(source: tuple[Path, State]) -> None:
    larger = [f"run.initialize_from={source[0]}", "model.image_size=32"]
    _, messages = state_of((1, 1), *larger)
    assert "model.position_size=16 keeps them" in messages[2]
    _, messages = state_of((1, 1), *larger, "model.position_size=16")
    assert len(messages) == 2 and "model.image_size was 16, is 32" in messages[1]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.depth=4", r"transformer.blocks.2.attention.projection.bias is missing there and \[32\] here"),
        ("model.feed_forward_ratio=2", r"w_in.bias is \[128\] there and \[64\] here"),
        ("moe.num_experts=2", r"experts.2.b_in is \[128\] there and missing here"),
    ],
)
def test_other_tensors_are_refused_on_all_ranks(source: tuple[Path, State], setting: str, said: str) -> None:
    answers = run_on_ranks(begin_or_say, 2, [f"run.initialize_from={source[0]}", setting], expert_parallel=2)
    for answer in answers:
        with pytest.raises(ValueError, match=said):
            raise ValueError(answer)
        assert "weights of another model" in answer and setting.split("=")[0] in answer


def test_a_run_with_a_checkpoint_does_not_read_the_weights() -> None:
    ((_, messages),) = run_on_ranks(begin, 1, ["run.initialize_from=nowhere"], 5)
    assert messages == ["run.initialize_from is not used: the run has a checkpoint"]


def test_an_export_without_some_tensors_is_refused(source: tuple[Path, State], tmp_path: Path) -> None:
    stored = open_weights(source[0])
    tensors = {name: tensor.read() for name, tensor in stored.tensors.items() if "final" not in name}
    save_file(tensors, tmp_path / "a.safetensors", export_metadata(stored))
    (answer,) = run_on_ranks(begin_or_say, 1, [f"run.initialize_from={tmp_path / 'a.safetensors'}"])
    assert "master/transformer.final_modulation.bias is missing there and [64] here" in answer


def test_a_whole_run_begins_with_weights_and_tokenizer_of_another(
    settings: list[str], tmp_path: Path
) -> None:
    train_runs((1, 1), [*settings, "run.steps=4"])
    first = tmp_path / "run"
    write_export(select_weights(open_weights(first), "all"), tmp_path / "a.safetensors")
    (first / "tokenizer.model").rename(tmp_path / "tokenizer.model")
    again = [f"run.directory={tmp_path / 'again'}", f"run.initialize_from={tmp_path / 'a.safetensors'}"]
    train_runs(
        (2, 2), [*settings, *again, "run.steps=1", "run.micro_batch=1", "optimizer.learning_rate=1.0e-12"]
    )
    assert (tmp_path / "again" / "tokenizer.model").read_bytes() == (
        tmp_path / "tokenizer.model"
    ).read_bytes()
    before, after = open_weights(tmp_path / "a.safetensors"), open_weights(tmp_path / "again")
    assert after.step == 1
    for name, tensor in before.tensors.items():
        if name.startswith("master/"):
            assert (after.tensors[name].read() - tensor.read()).abs().max() < 1e-9, name
