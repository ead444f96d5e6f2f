"""Transformers of diffusers: what fits is converted and answers as diffusers does, what does not is named."""

import json
from pathlib import Path
from typing import Any  # networks of diffusers

import pytest
import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel
from safetensors.torch import load_file, save_file

from diffmoe_scale.checkpoint.stored import open_weights
from diffmoe_scale.convert.convert import Options, convert
from diffmoe_scale.convert.diffusers import WEIGHTS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model: Any = DiTTransformer2DModel(  # diffusers' classes are untyped
        num_attention_heads=4,
        attention_head_dim=8,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=10,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))
    first, second = model.transformer_blocks
    second.norm1.emb.load_state_dict(first.norm1.emb.state_dict())
    model.save_pretrained(tmp_path / "dit")
    return tmp_path / "dit"


def change(folder: Path, **changed: object) -> None:
    tree = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(tree | changed))


@pytest.mark.parametrize("is_pipeline", [False, True])
def test_a_dit_answers_as_diffusers_does(folder: Path, tmp_path: Path, is_pipeline: bool) -> None:
    if is_pipeline:
        (tmp_path / "pipeline").mkdir()
        folder = folder.rename(tmp_path / "pipeline" / "transformer").parent
    (_, line) = convert(folder, tmp_path / "a.safetensors", Options())
    off = float(line.split("differs by ")[1].split()[0])
    assert off < 1e-4
    config = open_weights(tmp_path / "a.safetensors").config
    assert (config.model.heads, config.model.image_size, config.model.num_classes) == (4, 64, 10)
    assert config.model.time_frequencies == "diffusers"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"_class_name": "FluxTransformer2DModel"}, "expected DiTTransformer2DModel"),
        ({"activation_fn": "geglu"}, "activation_fn is 'geglu', expected 'gelu-approximate'"),
    ],
)
def test_what_does_not_fit_is_named(
    folder: Path, tmp_path: Path, changed: dict[str, object], said: str
) -> None:
    change(folder, **changed)
    with pytest.raises(ValueError, match=said):
        convert(folder, tmp_path / "a.safetensors", Options())
    assert not (tmp_path / "a.safetensors").exists()


def test_the_parts_of_a_pixart_that_do_not_fit_are_named(tmp_path: Path) -> None:
    model: Any = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        sample_size=8,
        cross_attention_dim=32,
        caption_channels=16,
    )
    model.save_pretrained(tmp_path / "pipeline" / "transformer")
    said = "is a PixArtTransformer2DModel, which ours cannot be: it has "
    with pytest.raises(ValueError, match=said) as error:
        convert(tmp_path / "pipeline", tmp_path / "a.safetensors", Options())
    names = " ".join(model.state_dict())
    for part in ("caption_projection", "attn2", "scale_shift_table"):
        assert part in str(error.value) and part in names
    assert not (tmp_path / "a.safetensors").exists()


def test_embeddings_that_differ_between_blocks_are_named(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / WEIGHTS)
    name = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"
    save_file(state | {name: state[name] + 1}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=f"{name} differs from that of block 0"):
        convert(folder, tmp_path / "a.safetensors", Options())


def test_a_missing_tensor_is_named(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / WEIGHTS)
    del state["proj_out_1.bias"]
    save_file(state, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"1 tensor missing, such as proj_out_1.bias"):
        convert(folder, tmp_path / "a.safetensors", Options())


def test_a_flow_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected 'ddpm'"):
        convert(folder, tmp_path / "a.safetensors", Options(settings=["diffusion.kind=flow"]))
