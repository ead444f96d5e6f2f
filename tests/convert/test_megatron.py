"""A folder that megatron.core.dist_checkpointing reads by itself, on a CPU, and the way back."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor

from diffmoe_scale.checkpoint.stored import open_weights
from diffmoe_scale.convert.convert import Options, convert
from diffmoe_scale.convert.inspect import open_any
from diffmoe_scale.convert.megatron import COMMON, CONFIG, from_megatron, open_megatron, to_megatron
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.sampling.loading import join_ranks
from tests.ranks import run_on_ranks

State = dict[str, torch.Tensor]
EXPERTS = 4
FC1 = "decoder.layers.1.mlp.experts.experts.linear_fc1.weight"


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("megatron") / "folder"
    lines = convert(run, path, Options(to="megatron"))
    assert any("the output on a fixed input differs by 0 (tolerance 0)" in line for line in lines)
    return path


def stacked(state: State, part: str) -> torch.Tensor:
    start = "ema/transformer.blocks.1.feed_forward.experts."
    return torch.stack([state[f"{start}{expert}.{part}"] for expert in range(EXPERTS)])


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("fc1.weight", "w_in"), ("fc1.bias", "b_in"), ("fc2.weight", "w_out"), ("fc2.bias", "b_out")],
)
def test_megatron_loads_all_experts_stacked(folder: Path, state: State, theirs: str, ours: str) -> None:
    join_ranks(1)
    expected = stacked(state, ours)
    name = f"decoder.layers.1.mlp.experts.experts.linear_{theirs}"
    asked = ShardedTensor.from_rank_offsets(name, torch.zeros_like(expected))
    loaded = dist_checkpointing.load({"experts": asked}, str(folder))
    assert torch.equal(loaded["experts"], expected)


def _two_experts(context: ParallelContext, folder: str, shape: tuple[int, ...]) -> np.ndarray:
    """As TEGroupedMLP asks for the experts of an expert-parallel rank: an axis in front, one shard each."""
    first = 2 * context.rank
    asked = {
        str(expert): ShardedTensor.from_rank_offsets(
            FC1, torch.zeros(shape), (0, first + expert, EXPERTS), prepend_axis_num=1
        )
        for expert in (0, 1)
    }
    loaded = dist_checkpointing.load(asked, folder)
    return torch.stack([loaded["0"], loaded["1"]]).numpy()


def test_each_expert_parallel_rank_loads_its_own(folder: Path, state: State) -> None:
    expected = stacked(state, "w_in")
    ranks = run_on_ranks(_two_experts, 2, str(folder), tuple(expected.shape[1:]), expert_parallel=2)
    assert np.array_equal(np.concatenate(ranks), expected.numpy())


def test_megatron_reads_router_and_common_state(folder: Path, state: State) -> None:
    join_ranks(1)
    expected = state["ema/transformer.blocks.1.feed_forward.router.weight"]
    asked = ShardedTensor.from_rank_offsets("decoder.layers.1.mlp.router.weight", torch.zeros_like(expected))
    assert torch.equal(dist_checkpointing.load({"router": asked}, str(folder))["router"], expected)
    assert dist_checkpointing.load_common_state_dict(str(folder))["diffmoe_scale"]["family"] == "ema"


def test_the_way_back_is_the_same_to_the_bit(folder: Path, run: Path, tmp_path: Path) -> None:
    convert(run, tmp_path / "direct.safetensors", Options())
    convert(folder, tmp_path / "back.safetensors", Options())
    assert (tmp_path / "back.safetensors").read_bytes() == (tmp_path / "direct.safetensors").read_bytes()


def test_names_go_there_and_back() -> None:
    for name in (
        "transformer.blocks.3.feed_forward.experts.7.b_out",
        "transformer.blocks.3.attention.qkv.bias",
    ):
        theirs, place = to_megatron(name)
        assert from_megatron(theirs).format(place) == name


def test_inspection_knows_it(folder: Path) -> None:
    assert open_any(folder).kind == "Megatron checkpoint of this program"


def test_two_kinds_of_weights_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds one kind of weights, not master, ema: give --weights"):
        convert(run, tmp_path / "a", Options(to="megatron", weights="all"))
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_program_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(json.dumps({}))
    torch.save({"args": 1}, tmp_path / COMMON)
    with pytest.raises(ValueError, match=r"this program did not write: common\.pt has no 'diffmoe_scale'"):
        open_megatron(tmp_path)


def test_a_shortened_file_is_named(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = max(copy.glob("*.distcp"), key=lambda file: file.stat().st_size)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="is damaged"):
        convert(copy, tmp_path / "a.safetensors", Options())
    assert not (tmp_path / "a.safetensors").exists()


def test_rounded_weights_are_those_of_an_export(run: Path, tmp_path: Path) -> None:
    convert(run, tmp_path / "a", Options(to="megatron", dtype="bf16"))
    convert(run, tmp_path / "b.safetensors", Options(dtype="bf16"))
    got, expected = open_megatron(tmp_path / "a").tensors, open_weights(tmp_path / "b.safetensors").tensors
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name].read(), expected[name].read()) for name in got)
