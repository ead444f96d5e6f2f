from pathlib import Path

import pytest

from diffmoe_scale.config.text import TextConfig
from diffmoe_scale.encoders.text.build import build_text_encoder
from diffmoe_scale.encoders.text.tokenizer import train_tokenizer
from diffmoe_scale.encoders.text.trained import TrainedTextEncoder
from diffmoe_scale.model.denoiser import Denoiser
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.parallel.expert_groups import register_expert_groups
from diffmoe_scale.train.optim import learning_rate, parameter_groups
from tests.model.models import VARIANTS, make_transformer
from tests.moe.layers import alone
from tests.ranks import run_on_ranks
from tests.train.runs import tiny_config, tiny_pipeline

PEAK = 2e-3


def rates(*settings: str, steps: int = 10) -> list[float]:
    config = tiny_config([f"optimizer.learning_rate={PEAK}", f"run.steps={steps}", *settings])
    return [learning_rate(step, config) / PEAK for step in range(1, steps + 1)]


def test_rate_is_constant_without_warm_up_and_decay() -> None:
    assert rates() == [1.0] * 10


def test_rate_rises_linearly_over_the_warm_up_steps() -> None:
    assert rates("optimizer.warmup_steps=4") == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 7)


def test_rate_falls_linearly_and_would_be_0_after_the_last_step() -> None:
    assert rates("optimizer.decay_fraction=0.4") == pytest.approx([1.0] * 7 + [0.75, 0.5, 0.25])


def test_warm_up_and_decay_that_meet_multiply() -> None:
    assert rates("optimizer.warmup_steps=4", "optimizer.decay_fraction=1.0", steps=4) == pytest.approx(
        [0.25, 0.5 * 0.75, 0.75 * 0.5, 0.25]
    )


def group_of(denoiser: Denoiser, *settings: str) -> dict[str, dict[str, object]]:
    """The group of each canonical parameter."""
    groups = parameter_groups(denoiser, tiny_config(settings).optimizer)
    pairs = [
        (id(parameter), group)
        for group in groups
        for parameter in group["params"]  # type: ignore[attr-defined]  # a list
    ]
    by_parameter = dict(pairs)
    assert len(pairs) == len(by_parameter) == len(list(denoiser.parameters()))
    return {name: by_parameter[id(parameter)] for name, parameter in denoiser.canonical_parameters().items()}


def test_matrices_alone_are_decayed() -> None:
    denoiser = tiny_pipeline(tiny_config([]), alone()).denoiser
    decayed = {
        name
        for name, group in group_of(denoiser, "optimizer.weight_decay=0.1").items()
        if group["weight_decay"] == 0.1
    }
    matrices = {name for name, parameter in denoiser.canonical_parameters().items() if parameter.dim() == 2}
    assert matrices - decayed == {"transformer.class_embedding.weight"} and decayed < matrices


def test_embeddings_of_words_and_their_places_are_not_decayed(tmp_path: Path) -> None:
    train_tokenizer(["a red circle", "two blue squares"], vocabulary=300, path=tmp_path / "tokenizer.model")
    encoder = build_text_encoder(
        TextConfig(vocabulary=300, width=12, depth=1), tokenizer_path=tmp_path / "tokenizer.model"
    )
    assert isinstance(encoder, TrainedTextEncoder)
    groups = group_of(Denoiser(make_transformer("text"), encoder), "optimizer.weight_decay=0.1")
    decayed = {
        name.removeprefix("text_encoder.")
        for name, group in groups.items()
        if group["weight_decay"] and name.startswith("text_encoder.")
    }
    assert decayed == {f"blocks.0.{layer}.weight" for layer in ("qkv", "projection", "w_in", "w_out")}


def test_tables_of_a_shared_modulation_and_scales_of_norms_are_not_decayed() -> None:
    denoiser = Denoiser(make_transformer("text", model=VARIANTS["joint-all"]), None)
    groups = group_of(denoiser, "optimizer.weight_decay=0.1")
    kept = {name for name, group in groups.items() if group["weight_decay"] == 0}
    assert all("table_CD" not in name and "norm" not in name for name in groups.keys() - kept)
    assert {name.rsplit(".", 1)[1] for name in kept} >= {"table_CD", "weight", "bias"}
    assert groups["transformer.shared_modulation.weight"]["weight_decay"] == 0.1
    assert groups["transformer.blocks.0.attention.text_qkv.weight"]["weight_decay"] == 0.1


def test_routers_and_their_predictors_learn_at_a_rate_of_their_own() -> None:
    denoiser = tiny_pipeline(tiny_config([]), alone()).denoiser
    ratios = {
        name: group["lr_ratio"]
        for name, group in group_of(denoiser, "optimizer.router_learning_rate_ratio=0.5").items()
    }
    assert {name for name, ratio in ratios.items() if ratio == 0.5} == {
        name for name in ratios if ".router." in name
    }
    assert any(".router.predictor." in name for name in ratios) and set(ratios.values()) == {0.5, 1.0}


def list_marks(context: ParallelContext) -> dict[str, tuple[object, object]]:
    denoiser = tiny_pipeline(tiny_config([]), context.megatron_groups).denoiser
    register_expert_groups(
        context, [parameter for layer in denoiser.moe_layers() for _, parameter in layer.expert_parameters()]
    )
    return {name: (group.get("moe"), group["name"]) for name, group in group_of(denoiser).items()}


def test_spread_experts_alone_carry_the_marks_by_which_deepspeed_reduces_them() -> None:
    for marks in run_on_ranks(list_marks, 2, expert_parallel=2):
        assert {name for name, (is_expert, _) in marks.items() if is_expert} == {
            name for name in marks if ".experts." in name
        }
        assert {group_name for is_expert, group_name in marks.values() if is_expert} == {"ep_size_2"}
