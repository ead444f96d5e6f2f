"""Sources that are damaged, foreign or of another model: refused with what is wrong; no target, and the
source as it was."""

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from diffmoe_scale.checkpoint import tensor_file
from diffmoe_scale.convert.convert import Options, convert
from tests.convert.reference import drawn_state, training_file
from tests.convert.runs import make_run
from tests.planted import plain_pickle
from tools.convert_checkpoint import main

SETTINGS = ["model.heads=4", "diffusion.kind=flow"]
State = dict[str, torch.Tensor]
Change = Callable[[State], object]


def refuse(path: Path, said: str, *settings: str) -> None:
    """The conversion is refused with such a sentence; nothing is written, the source stays."""
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    target = path.with_name("target.safetensors")
    with pytest.raises(ValueError, match=said):
        convert(path, target, Options(settings=[*SETTINGS, *settings]))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    assert not [name for name in os.listdir(path.parent) if name.startswith("target")]


def rename_all(state: State) -> None:
    for name in list(state):
        state[f"other.{name}"] = state.pop(name)


WRONG: dict[str, tuple[Change, str]] = {
    "missing": (
        lambda s: s.pop("blocks.1.mlp.experts.2.fc1.bias"),
        "missing, such as blocks.1.mlp.experts.2.fc1.bias",
    ),
    "left over": (lambda s: s.update(more=torch.zeros(2)), "1 tensor left over, such as more"),
    "another name": (
        lambda s: s.update({"blocks.0.attn.q_norm.weight": torch.ones(8)}),
        "normalized queries and keys",
    ),
    "flash attention": (
        lambda s: s.update({"blocks.0.attn.Wqkv.weight": torch.ones(8)}),
        "attention by flash-attn",
    ),
    "another shape": (
        lambda s: s.update({"blocks.2.mlp.fc1.bias": torch.zeros(127)}),
        r"blocks.2.feed_forward.w_in.bias is \(127,\) there and \(128,\) by the settings",
    ),
    "learned positions": (
        lambda s: s.update(pos_embed=s["pos_embed"] + 0.1),
        "pos_embed differs by 0.1 from the sines and cosines",
    ),
    "NaN positions": (lambda s: s.update(pos_embed=s["pos_embed"] * torch.nan), "pos_embed differs by nan"),
    "another prefix": (rename_all, "names that all begin with 'other.'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_tensor_is_named(tmp_path: Path, name: str) -> None:
    change, said = WRONG[name]
    state = drawn_state("diffmoe")
    change(state)
    torch.save(state, tmp_path / "a.pt")
    refuse(tmp_path / "a.pt", said)


def test_experts_of_one_kind_and_dense_networks_of_another_are_refused(tmp_path: Path) -> None:
    state = drawn_state("diffmoe")
    gated = drawn_state("diffmoe", is_gated=True)
    mixed = {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith(("blocks.0.mlp", "blocks.2.mlp"))
    }
    mixed |= {
        name: tensor for name, tensor in gated.items() if name.startswith(("blocks.0.mlp", "blocks.2.mlp"))
    }
    torch.save(mixed, tmp_path / "a.pt")
    refuse(tmp_path / "a.pt", "moe.activation is one for all")


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    torch.save(drawn_state("diffmoe"), tmp_path / "a.pt")
    refuse(tmp_path / "a.pt", "by the settings", "model.width=64")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04" + bytes(50)])
def test_foreign_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    for name in ("a.pt", "a.safetensors"):
        (tmp_path / name).write_bytes(content)
        refuse(tmp_path / name, "is refused|damaged|no safetensors file")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = training_file(tmp_path / "whole.pt", drawn_state("diffmoe"))
    data = path.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        (tmp_path / "a.pt").write_bytes(data[: int(len(data) * share)])
        refuse(tmp_path / "a.pt", "damaged|is refused")


def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "a.pt").write_bytes(plain_pickle(marker))
    refuse(tmp_path / "a.pt", "is refused")

    class Planted:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {marker}",)

    torch.save({"model": drawn_state(), "ema": drawn_state(), "args": Planted()}, tmp_path / "b.pt")
    refuse(tmp_path / "b.pt", r"b.pt is refused: it names \w+.system")
    assert not marker.exists()


def test_what_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "a.pt")
    refuse(tmp_path / "a.pt", "holds a list; expected a state dict")
    torch.save({"model": {}, "ema": {}}, tmp_path / "b.pt")
    refuse(tmp_path / "b.pt", "model is a dict; expected a state dict with tensors")
    torch.save({"a": 1}, tmp_path / "c.pt")
    refuse(tmp_path / "c.pt", "holds more than tensors, such as a")


def test_a_model_that_dit_s_names_cannot_hold_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path / "run", "moe.gate=sigmoid", steps=[10])
    with pytest.raises(ValueError, match=r"moe.gate is 'sigmoid', expected 'softmax'.*time_scale"):
        convert(tmp_path / "run", tmp_path / "a.pt", Options())


@pytest.mark.parametrize("words", ["a", "a.pt", "a --to megatron", "a --to diffusers"])
def test_a_disk_that_fills_up_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    make_run(tmp_path / "run", "diffusion.time_scale=1.0", steps=[10])

    def fill(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "a"))

    monkeypatch.setattr(tensor_file.os, "fsync", fill)
    (tmp_path / "out").mkdir()
    assert main([str(tmp_path / "run"), *f"{tmp_path}/out/{words}".split()]) == 1
    assert "No space left on device; free space there" in capsys.readouterr().err
    assert not os.listdir(tmp_path / "out")


def test_a_conversion_that_answers_otherwise_is_no_target(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = tensor_file.write_tensors

    def write_wrong(path: Path, tensors: dict[str, tensor_file.LazyTensor], metadata: dict[str, str]) -> None:
        name = next(name for name in tensors if "patch_embedding.weight" in name)
        write(path, {**tensors, name: tensors[name].map(lambda tensor: tensor * 1.01)}, metadata)

    monkeypatch.setattr("diffmoe_scale.convert.export.write_tensors", write_wrong)
    assert main([str(run), str(tmp_path / "a.safetensors")]) == 1
    assert "differs by" in capsys.readouterr().err
    assert not os.listdir(tmp_path)


def test_a_target_that_exists_stays(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.safetensors").write_text("old")
    assert main([str(run), str(tmp_path / "a.safetensors")]) == 2
    assert "exists; nothing is overwritten" in capsys.readouterr().err
    assert (tmp_path / "a.safetensors").read_text() == "old"
