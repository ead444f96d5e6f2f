"""Weights of other formats are named, with the command that converts them, wherever weights are asked for."""

from collections.abc import Callable
from pathlib import Path

import pytest

from diffmoe_scale.checkpoint.stored import open_export, open_weights
from diffmoe_scale.config.load import load_config
from diffmoe_scale.evaluation.harness.targets import find_targets
from diffmoe_scale.sampling.loading import load_pipeline
from diffmoe_scale.train.places import check_places

FILES = {
    "a.pt": ("", "a file of torch.save"),
    "pipeline/model_index.json": ("pipeline", "a folder of diffusers"),
    "transformer/diffusion_pytorch_model.safetensors": ("transformer", "a folder of diffusers"),
    "sharded/diffusion_pytorch_model.safetensors.index.json": ("sharded", "a folder of diffusers"),
    "megatron/common.pt": ("megatron", "a checkpoint of Megatron"),
}


def begin(path: Path) -> None:
    shard = path.parent / "shard.tar"
    shard.touch()
    check_places(load_config(None, [f"run.initialize_from={path}", f"data.train=[{shard}]"]))


def evaluate(path: Path) -> None:
    find_targets([str(path)], ["ema"], may_be_empty=False)


@pytest.mark.parametrize("read", [open_weights, open_export, load_pipeline, begin, evaluate])
@pytest.mark.parametrize("file", FILES)
def test_the_command_is_said(tmp_path: Path, read: Callable[[Path], object], file: str) -> None:
    folder, kind = FILES[file]
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("{}")
    if folder == "megatron":
        (tmp_path / folder / "metadata.json").write_text("{}")
    path = tmp_path / (folder or file)
    name = path.with_suffix("").name
    with pytest.raises(ValueError) as error:
        read(path)
    assert str(error.value) == (
        f"{path} is {kind}, which is converted first: "
        f"python tools/convert_checkpoint.py {path} {name}.safetensors"
    )
