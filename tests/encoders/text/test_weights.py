"""Weights as they lie in files: shared by the processes of a machine, and copied only where they must be."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from diffmoe_scale.parallel.context import ParallelContext
from tests.encoders.text.language_models import config_of, write_model
from tests.encoders.text.texts import load_encoder
from tests.ranks import run_on_ranks

RANKS = 3


def mapped_kib(file: Path) -> dict[str, int]:
    """What this process has of a file in its memory, by the names of /proc/self/smaps; `Pss` is its share of
    what several processes have."""
    found: dict[str, int] = {}
    is_of_file = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            is_of_file = words[-1] == str(file)
        elif is_of_file and words[-1] == "kB":
            found[words[0][:-1]] = found.get(words[0][:-1], 0) + int(words[1])
    return found


def load_and_look(context: ParallelContext, folder: Path, precision: str) -> dict[str, int]:
    encoder = load_encoder(config_of(folder, precision=precision))
    assert sum(float(weight.float().sum()) for weight in encoder.parameters()) != 0
    dist.barrier(context.control_group)
    found = mapped_kib(folder / "model.safetensors")
    dist.barrier(context.control_group)
    return found


@pytest.mark.parametrize("kind", ["t5", "qwen3"])
def test_processes_of_a_machine_share_one_copy_of_weights(kind: str, tmp_path: Path) -> None:
    folder = write_model(kind, tmp_path / "model", dtype=torch.bfloat16)
    size_kib = (folder / "model.safetensors").stat().st_size / 1024
    found = run_on_ranks(load_and_look, RANKS, folder, "bf16")
    for rank in found:
        assert rank["Rss"] >= 0.8 * size_kib, "all weights are views of the file"
        assert rank["Pss"] <= rank["Rss"] / RANKS + 8
        assert rank["Private_Dirty"] == 0


def test_weights_in_another_format_are_copies_and_the_file_is_let_go(tmp_path: Path) -> None:
    folder = write_model("t5", tmp_path / "model", dtype=torch.float32)
    encoder = load_encoder(config_of(folder, precision="bf16"))
    assert {weight.dtype for weight in encoder.parameters()} == {torch.bfloat16}
    assert mapped_kib(folder / "model.safetensors") == {}


def test_a_matrix_that_two_modules_share_is_one(tmp_path: Path) -> None:
    tower = load_encoder(config_of(write_model("t5", tmp_path / "model"))).tower
    assert tower is not None
    assert tower.get_parameter("shared.weight") is tower.get_parameter("encoder.embed_tokens.weight")
