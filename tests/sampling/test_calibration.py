import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.load import load_config, load_run_config
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.data.features.format import pack_sample
from diffmoe_scale.data.features.source import FeatureSet, FeatureSource
from diffmoe_scale.data.reading.pictures import Size
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.sampling.batch import generate_batch, number_requests
from diffmoe_scale.sampling.calibration import MAX_TRIALS, TOLERANCE, collect_prompts, search
from diffmoe_scale.sampling.loading import load_pipeline
from diffmoe_scale.train import run as training
from tests.data.samples import write_shards
from tests.ranks import run_alone, run_on_ranks
from tests.train.runs import text_settings, tiny_config
from tools import find_gamma

# DiffMoE's table for L-E16: threshold to average inference capacity.
PAPER = {0.9: 0.71, 0.5: 0.92, 0.4: 0.97, 0.2: 1.10, 0.1: 1.22, 1e-2: 1.71, 1e-3: 2.33, 1e-5: 4.36}


def papers_capacity(gamma: float) -> float:
    return float(np.interp(np.log(gamma), np.log(sorted(PAPER)), [PAPER[known] for known in sorted(PAPER)]))


@settings(max_examples=40, deadline=None)
@given(st.floats(0.75, 4.3))
def test_every_capacity_of_the_papers_table_is_found_in_few_trials(capacity: float) -> None:
    trials = search(papers_capacity, capacity)
    assert abs(papers_capacity(trials[-1].gamma) - capacity) <= TOLERANCE and len(trials) <= 12


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), st.floats(0.1, 4.0), st.floats(0.05, 0.95))
def test_share_of_any_spread_of_probabilities_is_found(seed: int, spread: float, share: float) -> None:
    probabilities = 1 / (1 + np.exp(-spread * np.random.default_rng(seed).normal(size=2000)))

    def measure(gamma: float) -> float:
        return float((probabilities > gamma).mean())

    assert abs(measure(search(measure, share)[-1].gamma) - share) <= TOLERANCE


def test_capacity_that_no_gamma_gives_is_an_error_with_the_nearest() -> None:
    tried: list[float] = []

    def measure(gamma: float) -> float:
        tried.append(gamma)
        return 2.0 if gamma < 0.3 else 0.5

    with pytest.raises(RunError, match=r"found no gamma for capacity 1.0; the nearest was 0.500 at gamma"):
        search(measure, 1.0)
    assert len(tried) == MAX_TRIALS and 0.29 < tried[-1] < 0.31


@pytest.mark.parametrize("always", [0.1, 3.0])
def test_capacity_on_one_side_of_every_gamma_s_is_an_error(always: float) -> None:
    with pytest.raises(RunError, match=f"for capacity 1.0; the nearest was {always:.3f} at gamma"):
        search(lambda gamma: always, 1.0)


def train_briefly(context: ParallelContext, settings: list[str]) -> None:
    config = tiny_config(
        [*settings, "run.steps=4", "optimizer.learning_rate=1.0e-2", "optimizer.ema_decay=0.5"]
    )
    training.train(config, context, RunDirectory(Path(config.run.directory)))


def find_and_draw(run: Path) -> tuple[int, list[int], float]:
    arguments = ["--checkpoint", str(run), "--images", "6", "sampling.steps=2", "sampling.guidance=2.0"]
    codes = [find_gamma.main([*arguments, "--capacity", capacity]) for capacity in ("1.5", "99", "-1")]
    gamma = json.loads((run / "gamma.json").read_text())["gamma"]
    chosen = [
        f"sampling.gamma={gamma:.5e}",
        "sampling.selection=interval",
        "sampling.steps=2",
        "sampling.guidance=2.0",
    ]
    model = load_pipeline(run, weights="ema", settings=chosen)
    requests = number_requests(collect_prompts(model.config, 6), seed=0)
    capacity = generate_batch(model.networks, requests, model.config.sampling).loads.capacity
    return codes[0], codes[1:], capacity


def test_recorded_gamma_of_a_trained_model_gives_the_capacity_asked_for(tmp_path: Path) -> None:
    run_on_ranks(train_briefly, 1, text_settings(tmp_path))
    code, refused, capacity = run_alone(find_and_draw, tmp_path / "run")
    assert code == 0 and refused == [2, 2]
    assert abs(capacity - 1.5) <= TOLERANCE


def test_prompts_are_captions_of_the_run_s_shards_also_of_features_in_buckets(tmp_path: Path) -> None:
    source = FeatureSource(
        "a",
        "",
        channels=4,
        factor=8,
        image_size=32,
        aspects=(0.5, 1.0),
        step=8,
        num_views=1,
        precision="bf16",
    )
    FeatureSet(source).save(tmp_path)
    member = pack_sample(torch.zeros(1, 4, 4, 4), [], [], original=Size(9, 9), crop=(0, 0), precision="bf16")
    write_shards(
        tmp_path,
        [2],
        replaced={f"0_{row}": {"safetensors": member, "txt": f"caption {row}".encode()} for row in range(2)},
    )
    buckets = ["buckets.enabled=true", "buckets.aspects=[0.5,1.0]", "buckets.step=8"]
    assert collect_prompts(load_config(None, [f"data.train=[{tmp_path}/*.tar]", *buckets]), 3) == [
        "caption 0",
        "caption 1",
        "caption 0",
    ]


def test_prompts_of_a_class_model_are_labels_evenly_spread() -> None:
    assert collect_prompts(load_config(None, ["model.conditioning=class", "model.num_classes=10"]), 4) == [
        0,
        2,
        5,
        7,
    ]


COMMANDS = (
    "pipe:touch {planted}; cat x.tar",
    "{{pipe:touch {planted},b.tar}}",
    "{{p,q}}ipe:touch {planted}",
    "pipe{{:,;}}touch {planted}",
    "b.tar::pipe:touch {planted}",
)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", ["train", "validation", "mixed"])
def test_a_command_in_the_config_of_a_run_is_not_run(tmp_path: Path, command: str, place: str) -> None:
    planted = tmp_path / "planted"
    text = command.format(planted=planted)
    data: dict[str, object] = {"cache_folder": str(tmp_path / "cache")}
    data |= {"train": [{"shards": [text], "weight": 1.0}]} if place == "mixed" else {place: [text]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    config = load_run_config(tmp_path / "config.yaml", ["sampling.steps=2"])
    with pytest.raises(ValueError, match="names a command instead of a file"):
        collect_prompts(config, 3)
    assert not planted.exists()


def test_a_command_of_the_command_line_is_run(tmp_path: Path) -> None:
    (shard,) = write_shards(tmp_path, [3])
    text = yaml.safe_dump({"data": {"train": ["pipe:false"], "cache_folder": str(tmp_path / "cache")}})
    (tmp_path / "config.yaml").write_text(text)
    config = load_run_config(tmp_path / "config.yaml", [f"data.train=['pipe:cat {shard}']"])
    assert len(collect_prompts(config, 3)) == 3


def test_a_file_that_the_user_names_may_hold_a_command(tmp_path: Path) -> None:
    (shard,) = write_shards(tmp_path, [3])
    data = {"train": [f"pipe:cat {shard}"], "cache_folder": str(tmp_path / "cache")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    assert len(collect_prompts(load_config(tmp_path / "config.yaml"), 3)) == 3


def test_other_shards_of_a_run_are_read(tmp_path: Path) -> None:
    """A colon and braces, and no command: the pattern is what it was."""
    (tmp_path / "a:b").mkdir()
    write_shards(tmp_path / "a:b", [3, 2])
    text = yaml.safe_dump({"data": {"train": [f"{tmp_path}/a:b/shard-{{000..001}}.tar"]}})
    (tmp_path / "config.yaml").write_text(text)
    assert len(collect_prompts(load_run_config(tmp_path / "config.yaml"), 5)) == 5
