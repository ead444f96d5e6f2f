"""safetensors files: equal to the package's, and every damage is named."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffmoe_scale.checkpoint.tensor_file import LazyTensor, read_tensors, write_tensors

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).view(2, 3),
    "b": torch.tensor(7),
    "c": torch.randn(5).to(torch.bfloat16),
    "d": torch.zeros(0, 3),
    "e": torch.arange(12).view(3, 4).t(),
}


def write(path: Path) -> Path:
    write_tensors(path, {name: LazyTensor.of(tensor) for name, tensor in TENSORS.items()}, {"k": "v"})
    return path


def test_the_package_reads_what_is_written(tmp_path: Path) -> None:
    loaded = load_file(write(tmp_path / "a.safetensors"))
    assert loaded.keys() == TENSORS.keys()
    assert all(torch.equal(loaded[name], TENSORS[name]) for name in TENSORS)


def test_what_the_package_writes_is_read(tmp_path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in TENSORS.items()}, tmp_path / "a", {"k": "v"})
    metadata, tensors = read_tensors(tmp_path / "a")
    assert metadata == {"k": "v"}
    assert all(torch.equal(tensors[name].read(), TENSORS[name]) for name in TENSORS)


def test_lazy_changes_are_made_when_read() -> None:
    tensor = LazyTensor.of(TENSORS["a"]).view(6).to(torch.bfloat16)
    assert (tensor.shape, tensor.dtype, tensor.num_bytes) == ((6,), torch.bfloat16, 12)
    assert torch.equal(tensor.read(), TENSORS["a"].view(6).to(torch.bfloat16))


def with_header(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(**changed: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changed


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no safetensors file"),
        (b"PK\x03\x04" + bytes(100), "no safetensors file"),
        (struct.pack("<Q", 5) + b"nojson", "no JSON"),
        (with_header([1]), "header is a list"),
        (with_header({"__metadata__": {"a": 1}}), "metadata are no texts"),
        (with_header({"w": entry(dtype="F7")}, bytes(4)), "number format F7"),
        (with_header({"w": 3}), "entry of 'w'"),
        (with_header({"w": entry(data_offsets=[0])}, bytes(4)), "entry of 'w'"),
        (with_header({"w": entry(shape=[2])}, bytes(4)), "'w' has shape"),
        (with_header({"w": entry(shape=[-1])}, bytes(4)), "'w' has shape"),
        (with_header({"w": entry(shape=[2**62, 4], data_offsets=[0, 0])}), "'w' has shape"),
        (with_header({"w": entry(shape=[2**70], data_offsets=[0, 0])}), "'w' has shape"),
        (with_header({"w": entry(), "x": entry()}, bytes(4)), "'x' begins at byte 0; expected 4"),
        (with_header({"w": entry()}, bytes(3)), "its header speaks of"),
        (with_header({"w": entry()}, bytes(5)), "its header speaks of"),
    ],
)
def test_damage_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_tensors(path)


def test_a_file_that_is_cut_at_any_place_is_refused(tmp_path: Path) -> None:
    data = write(tmp_path / "whole").read_bytes()
    for length in range(0, len(data), 7):
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"truncated|damaged|no safetensors"):
            read_tensors(tmp_path / "cut")


def test_a_file_that_becomes_shorter_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors")
    _, tensors = read_tensors(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="ends within 'e'"):
        tensors["e"].read()
