"""The record beside the weights is used for these weights alone."""

import json
import os
import time
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from diffmoe_scale.encoders import fingerprint as module
from diffmoe_scale.encoders.fingerprint import WeightFiles, fingerprint


def load(folder: Path) -> tuple[nn.Module, WeightFiles]:
    files = WeightFiles([folder / "weights.safetensors"], record=folder / "fingerprint.json")
    network = nn.Linear(2, 3)
    network.load_state_dict(load_file(folder / "weights.safetensors"))
    return network, files


def write(folder: Path, value: float) -> None:
    """After a step of the file system's clock, whose times would be equal."""
    time.sleep(0.02)
    save_file({"weight": torch.full((3, 2), value), "bias": torch.zeros(3)}, folder / "weights.safetensors")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights that are older than a step of the clock."""
    monkeypatch.setattr(module, "FINE_CLOCK_S", 0.0)
    monkeypatch.setattr(module, "COARSE_CLOCK_S", 0.0)
    write(tmp_path, 1.0)
    return tmp_path


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each hashing of weights."""
    calls: list[int] = []

    def counted(network: nn.Module, *settings: object) -> str:
        calls.append(1)
        return fingerprint(network, *settings)

    monkeypatch.setattr(module, "fingerprint", counted)
    return calls


def test_weights_are_hashed_once(folder: Path, hashed: list[int]) -> None:
    network, files = load(folder)
    expected = fingerprint(network, "kind", 3)
    assert [load(folder)[1].fingerprint(network, "kind", 3) for _ in range(3)] == [expected] * 3
    assert len(hashed) == 1
    # Other settings are another fingerprint, and both are kept.
    assert files.fingerprint(network, "kind", 4) == fingerprint(network, "kind", 4) != expected
    assert load(folder)[1].fingerprint(network, "kind", 3) == expected and len(hashed) == 2


@pytest.mark.parametrize("kept", ["nothing", "time of change"])
def test_changed_weights_of_the_same_size_are_noticed(folder: Path, kept: str) -> None:
    network, files = load(folder)
    before, stat = files.fingerprint(network), (folder / "weights.safetensors").stat()
    write(folder, 2.0)
    if kept == "time of change":
        os.utime(folder / "weights.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (folder / "weights.safetensors").stat().st_size == stat.st_size
    network, files = load(folder)
    assert files.fingerprint(network) == fingerprint(network) != before


def test_weights_that_change_while_they_are_hashed_are_not_recorded(folder: Path) -> None:
    network, files = load(folder)
    write(folder, 2.0)
    assert files.fingerprint(network) == fingerprint(network)
    assert not (folder / "fingerprint.json").exists()


def test_weights_younger_than_a_step_of_the_clock_are_not_recorded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FINE_CLOCK_S", 1000.0)
    monkeypatch.setattr(module, "COARSE_CLOCK_S", 1000.0)
    network, files = load(folder)
    assert files.fingerprint(network) == fingerprint(network)
    assert not (folder / "fingerprint.json").exists()


def test_a_folder_that_cannot_be_written_to_is_hashed_at_each_start(
    folder: Path, hashed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(module, "replace_file", refuse)
    network, files = load(folder)
    assert [files.fingerprint(network) for _ in range(2)] == [fingerprint(network)] * 2
    assert len(hashed) == 2 and not (folder / "fingerprint.json").exists()


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"files": {}}',
        b"[" * 100_000,
        b'{"files": "STAMP", "fingerprints": []}',
        b'{"files": "STAMP", "fingerprints": {"()": null}}',
        b'{"files": "STAMP", "fingerprints": {"()": "no digits"}}',
        b'{"files": "STAMP", "fingerprints": {"()": 5}}',
    ],
)
def test_a_damaged_record_is_made_anew(folder: Path, record: bytes) -> None:
    network, files = load(folder)
    record = record.replace(b'"STAMP"', json.dumps(files.stamp).encode())
    (folder / "fingerprint.json").write_bytes(record)
    assert files.fingerprint(network) == fingerprint(network)
    assert json.loads((folder / "fingerprint.json").read_text(encoding="utf-8"))["fingerprints"]["()"]


@pytest.mark.slow
def test_any_damage_to_the_record_gives_the_right_fingerprint(folder: Path) -> None:
    """One byte changed, some cut off or added, 300 times: the record is made anew."""
    network, files = load(folder)
    expected = files.fingerprint(network)
    good, random = (folder / "fingerprint.json").read_bytes(), Random(0)
    for _ in range(300):
        damaged = bytearray(good)
        place = random.randrange(len(damaged))
        match random.randrange(3):
            case 0:
                damaged[place] = random.randrange(256)
            case 1:
                del damaged[place:]
            case 2:
                damaged[place:place] = random.randbytes(3)
        (folder / "fingerprint.json").write_bytes(damaged)
        assert load(folder)[1].fingerprint(network) == expected
