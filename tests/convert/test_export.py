"""A run's weights as safetensors files: the same tensors, whole or not at all."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from diffmoe_scale.checkpoint import manifest
from diffmoe_scale.checkpoint.stored import export_metadata, open_weights, stored_of_metadata
from diffmoe_scale.checkpoint.tensor_file import INDEX, SINGLE
from diffmoe_scale.convert.convert import Options, convert
from diffmoe_scale.convert.export import (
    average_checkpoints,
    cast_weights,
    select_weights,
    split_shards,
    write_export,
)
from diffmoe_scale.sampling.loading import directory_of
from tests.convert.runs import STEPS, make_run

State = dict[str, torch.Tensor]


@pytest.fixture
def export(run: Path, tmp_path: Path) -> Path:
    path = tmp_path / "export.safetensors"
    write_export(select_weights(open_weights(run), "all"), path)
    return path


def assert_equal(got: State, expected: State) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


def test_an_export_holds_the_tensors_of_the_run(export: Path, state: State) -> None:
    assert_equal(load_file(export), state)


def test_the_config_is_inside(export: Path, run: Path) -> None:
    with safe_open(export, "pt") as file:
        assert "num_experts: 4" in file.metadata()["config"]
    stored, of_run = open_weights(export), open_weights(run)
    assert (stored.config, stored.settings, stored.step) == (of_run.config, of_run.settings, STEPS[-1])


@pytest.mark.parametrize("weights", ["ema", "master"])
def test_one_family_with_its_thresholds(run: Path, tmp_path: Path, state: State, weights: str) -> None:
    write_export(select_weights(open_weights(run), weights), tmp_path / "a.safetensors")
    expected = {name: tensor for name, tensor in state.items() if name.startswith((weights, "buffer"))}
    assert_equal(load_file(tmp_path / "a.safetensors"), expected)


def test_a_family_that_is_not_there_is_named(run: Path, tmp_path: Path) -> None:
    write_export(select_weights(open_weights(run), "ema"), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"--weights is 'master'; .* holds ema"):
        select_weights(open_weights(tmp_path / "a.safetensors"), "master")


def test_bf16_rounds_weights_and_leaves_thresholds(run: Path, tmp_path: Path, state: State) -> None:
    stored = cast_weights(select_weights(open_weights(run), "ema"), torch.bfloat16)
    write_export(stored, tmp_path / "a.safetensors")
    for name, tensor in load_file(tmp_path / "a.safetensors").items():
        expected = state[name] if name.startswith("buffer") else state[name].to(torch.bfloat16)
        assert tensor.dtype == expected.dtype and torch.equal(tensor, expected), name


def test_shards_have_at_most_their_size_and_an_index(run: Path, tmp_path: Path, state: State) -> None:
    limit = 40_000
    write_export(select_weights(open_weights(run), "all"), tmp_path / "a", shard_gib=limit / 2**30)
    index = json.loads((tmp_path / "a" / INDEX).read_text())
    files = sorted((tmp_path / "a").glob("*.safetensors"))
    assert len(files) > 3 and {path.name for path in files} == set(index["weight_map"].values())
    whole: State = {}
    for path in files:
        held = load_file(path)
        assert sum(tensor.nbytes for tensor in held.values()) <= limit or len(held) == 1
        whole |= held
    assert_equal(whole, state)
    stored = open_weights(tmp_path / "a")
    assert_equal({name: tensor.read() for name, tensor in stored.tensors.items()}, state)


def test_a_folder_without_a_limit_has_one_file(run: Path, tmp_path: Path) -> None:
    write_export(open_weights(run), tmp_path / "a")
    assert [path.name for path in (tmp_path / "a").iterdir()] == [SINGLE]


def test_shards_of_one_file_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--shard-gib is for a folder"):
        write_export(open_weights(run), tmp_path / "a.safetensors", shard_gib=1)


def test_a_tensor_above_the_limit_has_a_file_of_its_own(run: Path) -> None:
    tensors = open_weights(run).tensors
    assert split_shards(tensors, 1) == [[name] for name in tensors]
    assert split_shards(tensors, 0) == [list(tensors)]


def test_an_average_is_the_mean_of_the_newest(tmp_path: Path) -> None:
    states = {step: make_run(tmp_path / f"run_{step}", steps=[step]) for step in STEPS}
    make_run(tmp_path / "run")
    average = average_checkpoints(tmp_path / "run", 2)
    for name, tensor in average.tensors.items():
        expected = torch.stack([states[step][name].double() for step in STEPS[-2:]]).mean(0)
        if name.startswith("buffer"):
            expected = states[STEPS[-1]][name]
        assert torch.equal(tensor.read(), expected.to(tensor.dtype)), name


def test_an_average_of_more_checkpoints_than_there_are_is_refused(run: Path) -> None:
    with pytest.raises(ValueError, match=r"--average is 4, but .* holds 3 complete checkpoints"):
        average_checkpoints(run, 4)


def test_a_checkpoint_of_another_config_is_refused(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    text = (copy / "config.yaml").read_text().replace("gate: softmax", "gate: sigmoid")
    (copy / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"moe.gate was 'softmax', is 'sigmoid'"):
        open_weights(copy)


def test_a_damaged_checkpoint_is_refused(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    path = next((copy / "checkpoints" / f"step_{STEPS[-1]:08d}").glob("*.distcp"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is damaged"):
        open_weights(copy)


@pytest.mark.parametrize(
    "damage", [{"settings": '{"moe": 3}'}, {"settings": "[]"}, {"layout": "3"}, {"origin": "[1]"}]
)
def test_metadata_of_other_kinds_are_a_sentence(run: Path, damage: dict[str, str]) -> None:
    stored = open_weights(run)
    with pytest.raises(ValueError, match="is damaged: its metadata"):
        stored_of_metadata(run, export_metadata(stored) | damage, stored.tensors)


def test_a_changed_byte_ends_the_conversion(run: Path, tmp_path: Path) -> None:
    """Check sums are compared when a file's first tensor is read; the target is not there."""
    copy = shutil.copytree(run, tmp_path / "run")
    path = next((copy / "checkpoints" / f"step_{STEPS[-1]:08d}").glob("*.distcp"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    stored = open_weights(copy, check_files="when read")
    for reading in (
        lambda: convert(copy, tmp_path / "a.safetensors", Options()),
        lambda: convert(copy, tmp_path / "a.safetensors", Options(average=2)),
        lambda: next(iter(stored.tensors.values())).read(),
        lambda: open_weights(copy),
    ):
        with pytest.raises(ValueError, match=rf"{path.name} has another check sum"):
            reading()
    assert not list(tmp_path.glob("a*"))


def test_a_file_is_compared_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    describe_file = manifest.describe_file

    def describe(path: Path) -> manifest.StoredFile:
        read.append(path)
        return describe_file(path)

    monkeypatch.setattr(manifest, "describe_file", describe)
    for tensor in open_weights(run, check_files="when read").tensors.values():
        tensor.read()
    folder = run / "checkpoints" / f"step_{STEPS[-1]:08d}"
    assert sorted(read) == sorted(folder / name for name in manifest.read_manifest(folder).files)


def test_an_older_checkpoint_by_its_folder(run: Path) -> None:
    assert open_weights(run / "checkpoints" / "step_00000010").step == 10


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", INDEX])
def test_an_incomplete_folder_is_refused(run: Path, tmp_path: Path, name: str) -> None:
    write_export(select_weights(open_weights(run), "ema"), tmp_path / "a", shard_gib=250_000 / 2**30)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    (tmp_path / "a" / (names[0] if name != INDEX else name)).unlink()
    with pytest.raises(ValueError, match=r"is missing|holds no weights"):
        open_weights(tmp_path / "a")


def test_a_foreign_file_is_no_export(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="no export of this program"):
        open_weights(tmp_path / "a.safetensors")


def test_an_export_beside_the_run_of_its_name_has_a_folder_of_its_own(tmp_path: Path) -> None:
    """The run's scores and tokenizer are not those of the export."""
    export = tmp_path / "demo.safetensors"
    export.touch()
    assert directory_of(export).path == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "config.yaml").touch()
    assert directory_of(export).path == tmp_path / "demo-export"
    assert directory_of(tmp_path / "demo").path == tmp_path / "demo"
