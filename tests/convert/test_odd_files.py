"""Files that are nearly checkpoints: read where what they are is certain, else refused with what they are."""

import json
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffmoe_scale.checkpoint.stored import export_metadata, open_export, open_weights
from diffmoe_scale.checkpoint.tensor_file import INDEX
from diffmoe_scale.convert.convert import Options, convert
from diffmoe_scale.convert.export import select_weights, write_export
from diffmoe_scale.convert.inspect import open_any
from diffmoe_scale.convert.upcycle import upcycle
from tests.convert.reference import drawn_state

State = dict[str, Tensor]
SETTINGS = ["model.heads=4", "diffusion.kind=flow"]
WEIGHT = "blocks.0.attn.qkv.weight"


def refuse(path: Path, said: str) -> None:
    """With such a sentence, and nothing is left at the target."""
    target = path.with_name("target.safetensors")
    with pytest.raises(ValueError, match=said):
        convert(path, target, Options(settings=SETTINGS))
    assert not list(path.parent.glob("target*"))


@pytest.fixture(scope="module")
def state() -> State:
    return drawn_state("diffmoe")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_names_of_wrappers_are_read_without_them(
    prefix: str, suffix: str, state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, plain = tmp_path / f"a{suffix}", tmp_path / "plain.pt"
    wrapped = {prefix + name: tensor.contiguous() for name, tensor in state.items()}
    torch.save(wrapped, path) if suffix == ".pt" else save_file(wrapped, path)
    torch.save(state, plain)
    with caplog.at_level(logging.WARNING):
        convert(path, tmp_path / "out.safetensors", Options(settings=SETTINGS, is_verified=False))
    assert f"names are read without {prefix!r}" in caplog.text
    convert(plain, tmp_path / "expected.safetensors", Options(settings=SETTINGS, is_verified=False))
    expected, got = load_file(tmp_path / "expected.safetensors"), load_file(tmp_path / "out.safetensors")
    assert expected.keys() == got.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("key", ["ema", "model", "state_dict"])
def test_one_state_dict_among_others_is_read(key: str, state: State, tmp_path: Path) -> None:
    torch.save({key: state, "opt": {"state": {}}, "step": 7}, tmp_path / "a.pt")
    lines = convert(
        tmp_path / "a.pt", tmp_path / "a.safetensors", Options(settings=SETTINGS, is_verified=False)
    )
    assert "of ema, buffer" in lines[0]
    torch.save({"weights": state}, tmp_path / "b.pt")
    refuse(tmp_path / "b.pt", "more than tensors, such as weights; .* as one of ema, model, state_dict")


ODD: dict[str, tuple[Callable[[State], State], str]] = {
    "another prefix": (
        lambda s: {f"net.{name}": tensor for name, tensor in s.items()},
        "names that all begin with 'net.'; save its state dict without that",
    ),
    "a LoRA": (lambda s: {"blocks.0.attn.qkv.lora_A.weight": torch.zeros(2)}, "is a LoRA"),
    "whole numbers": (
        lambda s: s | {WEIGHT: s[WEIGHT].to(torch.int8)},
        f"{WEIGHT} is int8; expected float32",
    ),
    "8 bits": (
        lambda s: s | {WEIGHT: s[WEIGHT].to(torch.float8_e4m3fn)},
        f"{WEIGHT} is float8_e4m3fn; expected float32",
    ),
    "complex": (lambda s: s | {WEIGHT: s[WEIGHT].to(torch.complex64)}, f"{WEIGHT} is complex64"),
    "sparse": (lambda s: s | {WEIGHT: s[WEIGHT].to_sparse()}, f"{WEIGHT} is sparse, quantized or packed"),
    "without values": (lambda s: s | {WEIGHT: s[WEIGHT].to("meta")}, f"{WEIGHT} is on meta"),
    "NaN": (
        lambda s: s | {WEIGHT: s[WEIGHT] * torch.nan},
        "NaN or infinite numbers in 1 tensor, such as ema/transformer.blocks.0.attention.qkv.weight",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_state_dict_is_refused_with_what_it_is(name: str, state: State, tmp_path: Path) -> None:
    change, said = ODD[name]
    torch.save(change(state), tmp_path / "a.pt")
    refuse(tmp_path / "a.pt", said)


def test_archives_that_are_no_state_dict_are_named(tmp_path: Path) -> None:
    for name, members in (("a.pt", ["a/constants.pkl", "a/data.pkl"]), ("b.pt", ["arr_0.npy"])):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member in members:
                archive.writestr(member, b"")
    refuse(tmp_path / "a.pt", "is a TorchScript program, which is code")
    refuse(tmp_path / "b.pt", "is an archive that torch.save did not write")


def test_folders_of_other_programs_are_named(tmp_path: Path) -> None:
    for name in ("language", "unet"):
        (tmp_path / name).mkdir()
    save_file({"model.embed_tokens.weight": torch.zeros(2)}, tmp_path / "language" / "model.safetensors")
    refuse(tmp_path / "language", "no model that is known here: it has such names as model.embed_tokens")
    (tmp_path / "unet" / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion"}))
    refuse(tmp_path / "unet", "a pipeline of diffusers without a transformer")


CHANGED: dict[str, tuple[Callable[[State, dict[str, str]], object], str]] = {
    "no config": (lambda tensors, texts: texts.pop("config"), "its metadata have no config"),
    "no metadata": (lambda tensors, texts: texts.clear(), "no settings in its metadata"),
    "another family": (lambda tensors, texts: tensors.update({"foo/a": torch.zeros(2)}), "such as foo/a"),
    "no family": (lambda tensors, texts: tensors.update(more=torch.zeros(2)), "such as more; expected names"),
    "nothing": (lambda tensors, texts: tensors.clear(), "holds no weights"),
    "whole numbers": (
        lambda tensors, texts: tensors.update({key: tensors[key].int() for key in list(tensors)[:9]}),
        "is int32; expected floating-point numbers",
    ),
    "8 bits": (
        lambda tensors, texts: tensors.update({key: tensors[key].char() for key in list(tensors)[:9]}),
        "is in the number format I8, which is not read; expected one of F64, F32",
    ),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_changed_export_is_refused_with_what_is_wrong(name: str, run: Path, tmp_path: Path) -> None:
    change, said = CHANGED[name]
    stored = select_weights(open_weights(run), "ema")
    tensors = {key: tensor.read() for key, tensor in sorted(stored.tensors.items(), reverse=True)}
    texts = export_metadata(stored)
    change(tensors, texts)
    save_file(tensors, tmp_path / "a.safetensors", texts)
    refuse(tmp_path / "a.safetensors", said)
    with pytest.raises(ValueError, match=r"a\.safetensors"):
        open_export(tmp_path / "a.safetensors")


def test_whole_numbers_that_a_foreign_origin_had_are_kept(run: Path, tmp_path: Path) -> None:
    stored = select_weights(open_weights(run), "ema")
    tensors = {key: tensor.read() for key, tensor in stored.tensors.items()}
    tensors["source/ema/count"] = torch.tensor([3])
    save_file(tensors, tmp_path / "a.safetensors", export_metadata(stored))
    assert open_export(tmp_path / "a.safetensors").tensors["source/ema/count"].read().tolist() == [3]


def test_words_of_the_command_line_are_not_the_file_s_fault(run: Path, tmp_path: Path) -> None:
    write_export(open_weights(run), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"^moe.foo is no setting"):
        open_weights(tmp_path / "a.safetensors", ["moe.foo=3"])


def test_a_part_of_a_checkpoint_is_named(run: Path, tmp_path: Path) -> None:
    write_export(open_weights(run), tmp_path / "a", shard_gib=40_000 / 2**30)
    part = min((tmp_path / "a").glob("model-*"))
    with pytest.raises(ValueError, match=f"{part} is one of several files of a model; give {tmp_path / 'a'}"):
        open_weights(part)
    (tmp_path / "a" / INDEX).unlink()
    with pytest.raises(ValueError, match=f"no weights under such a name, but {part.name}"):
        open_weights(tmp_path / "a")
    with pytest.raises(ValueError, match=f"the folder of a run's checkpoints; give {run}"):
        open_weights(run / "checkpoints")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"run/config.yaml is missing: restore it"):
        open_weights(tmp_path / "run")
    with pytest.raises(ValueError, match="--average is 2, for a run directory"):
        convert(tmp_path / "a", tmp_path / "b.safetensors", Options(average=2))


def test_upcycling_refuses_a_source_without_thresholds(run: Path, tmp_path: Path) -> None:
    stored = select_weights(open_weights(run), "ema")
    held = {name: tensor.read() for name, tensor in stored.tensors.items() if name.startswith("ema")}
    save_file(held, tmp_path / "a.safetensors", export_metadata(stored))
    with pytest.raises(ValueError, match="expert_threshold_E is missing there"):
        upcycle(
            open_weights(tmp_path / "a.safetensors"), "ema", ["model.depth=4"], noise=0.0, is_verified=True
        )


def test_a_foreign_safetensors_file_with_metadata_is_inspected(tmp_path: Path) -> None:
    save_file({"a.lora_A.weight": torch.zeros(2)}, tmp_path / "a.safetensors", {"format": "pt"})
    assert open_any(tmp_path / "a.safetensors").kind == "safetensors of an unknown model"
