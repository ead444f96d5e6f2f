"""torch reads what is written piece by piece as what it would have written itself."""

import weakref
import zipfile
from pathlib import Path
from typing import Any  # torch's own reader

import pytest
import torch

from diffmoe_scale.checkpoint.tensor_file import LazyTensor
from diffmoe_scale.convert import torch_archive
from diffmoe_scale.convert.torch_archive import ALIGNMENT, STORAGES, write_torch_archive
from tests.convert.reference import namespace


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes: list[tuple[int, ...]] = [(), (1,), (7,), (3, 5), (2, 3, 4, 1), (0, 4)]
    return {
        f"{dtype} {shape}": (100 * torch.randn(shape, generator=generator)).to(dtype)
        for dtype in STORAGES
        for shape in shapes
    }


def offset_of(path: Path, record: str) -> int:
    """Where torch finds the bytes of a record."""
    reader: Any = torch._C.PyTorchFileReader(str(path))  # the stub lacks the method
    offset: int = reader.get_record_offset(record)
    return offset


@pytest.mark.parametrize("mmap", [False, True])
def test_every_number_format_and_shape_is_read_by_torch(tmp_path: Path, mmap: bool) -> None:
    expected = tensors()
    lazy = {name: LazyTensor.of(tensor) for name, tensor in expected.items()}
    content = {"model": lazy, "step": 3, "args": namespace(model="a", rates=[0.1, None])}
    write_torch_archive(tmp_path / "a.pt", content)
    with torch.serialization.safe_globals([type(namespace())]):
        got = torch.load(tmp_path / "a.pt", weights_only=True, mmap=mmap)
    assert (got["step"], got["args"]) == (3, content["args"])
    assert got["model"].keys() == expected.keys()
    for name, tensor in got["model"].items():
        assert (tensor.dtype, tensor.shape, tensor.stride()) == (
            expected[name].dtype,
            expected[name].shape,
            expected[name].stride(),
        )
        assert torch.equal(tensor, expected[name]) and not tensor.requires_grad


def test_records_are_those_of_torch_and_their_bytes_are_aligned(tmp_path: Path) -> None:
    state = {"a": torch.ones(3), "b": torch.zeros(2, 2)}
    torch.save(state, tmp_path / "theirs.pt")
    write_torch_archive(tmp_path / "ours.pt", {name: LazyTensor.of(value) for name, value in state.items()})
    with zipfile.ZipFile(tmp_path / "theirs.pt") as theirs, zipfile.ZipFile(tmp_path / "ours.pt") as ours:
        assert ours.testzip() is None
        names = {name.partition("/")[2] for name in ours.namelist()}
        assert names <= {name.partition("/")[2] for name in theirs.namelist()}
    assert [offset_of(tmp_path / "ours.pt", f"data/{number}") % ALIGNMENT for number in (0, 1)] == [0, 0]
    assert (tmp_path / "ours.pt").read_bytes().count(b"FloatStorage") == 1


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    alive, most = [0], [0]

    def read() -> torch.Tensor:
        values = torch.zeros(4)
        weakref.finalize(values.untyped_storage(), alive.__setitem__, 0, alive[0])
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        return values

    write_torch_archive(tmp_path / "a.pt", {name: LazyTensor((4,), torch.float32, read) for name in "abc"})
    assert most == [1] and alive == [0]


def test_records_of_many_gigabytes_have_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With zip's limit lowered, every record is one of 64 bits."""
    monkeypatch.setattr(torch_archive.zipfile, "ZIP64_LIMIT", 100)
    state = {"a": torch.arange(100.0), "b": torch.arange(3.0)}
    write_torch_archive(tmp_path / "a.pt", {name: LazyTensor.of(value) for name, value in state.items()})
    got = torch.load(tmp_path / "a.pt", weights_only=True)
    assert all(torch.equal(got[name], tensor) for name, tensor in state.items())
    assert offset_of(tmp_path / "a.pt", "data/0") % ALIGNMENT == 0
