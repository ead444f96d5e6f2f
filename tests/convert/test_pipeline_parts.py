"""Frozen networks in a folder of diffusers: they answer there as in training."""

import json
from pathlib import Path
from typing import Any  # pipelines of diffusers

import open_clip
import pytest
import torch
from diffusers import DiffusionPipeline

from diffmoe_scale.convert.export import write_export
from diffmoe_scale.encoders.autoencoder.diffusers import load_autoencoder
from diffmoe_scale.encoders.text.build import build_frozen_encoders
from diffmoe_scale.sampling.batch import generate_batch, number_requests
from diffmoe_scale.sampling.loading import load_pipeline
from tests.convert.frozen import write_tower
from tests.convert.pipelines import TEXT, draw_weights, write_pipeline
from tests.encoders.autoencoder.models import CPU, FORMATS, config_of, model_of_kind
from tests.encoders.text.language_models import KINDS, write_model
from tests.encoders.text.texts import TOWER

CAPTIONS = ["two red circles", "three green squares left of a café </s> <eos>", ""]
FROZEN = [word for word in TEXT if not word.startswith("text.")]


@pytest.fixture(autouse=True)
def modules_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code of folders is copied to a place of the test alone."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


def load(folder: Path, **settings: Any) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(
        folder, trust_remote_code=True, use_safetensors=True, **settings
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def autoencoder_settings(kind: str, folder: Path) -> list[str]:
    channels, factor = FORMATS[kind]
    model_of_kind(kind).save_pretrained(folder)
    config = config_of(kind, folder)
    return [
        "autoencoder.kind=diffusers",
        f"autoencoder.path={folder}",
        f"autoencoder.normalization={config.normalization}",
        f"model.channels={channels}",
        f"model.image_size={8 * factor}",
        "model.patch_size=2",
        "sampling.steps=3",
    ]


@pytest.mark.parametrize("kind", FORMATS)
def test_latents_are_decoded_as_in_training(kind: str, tmp_path: Path, tokenizer: Path) -> None:
    settings = autoencoder_settings(kind, tmp_path / "vae")
    stored = draw_weights(settings, tokenizer)
    write_pipeline(stored, tmp_path / "a")
    write_export(stored, tmp_path / "a.safetensors")
    model = load_pipeline(tmp_path / "a.safetensors")
    requests = number_requests([0, 3], seed=1)
    expected = generate_batch(model.networks, requests, model.config.sampling).images_BCHW / 2 + 0.5
    found = load(tmp_path / "a")([0, 3], seed=1, output_type="pt").images
    assert found.shape == expected.shape and (found - expected).abs().max() < 1e-4


def test_an_autoencoder_computes_in_its_precision(tmp_path: Path, tokenizer: Path) -> None:
    settings = [*autoencoder_settings("flux", tmp_path / "vae"), "autoencoder.precision=bf16"]
    stored = draw_weights(settings, tokenizer)
    write_pipeline(stored, tmp_path / "a")
    pipeline = load(tmp_path / "a")
    assert pipeline.vae.dtype == torch.bfloat16
    latents = torch.randn(1, 16, 8, 8)
    expected = load_autoencoder(stored.config.autoencoder, device=CPU).decode(latents)
    assert torch.equal(pipeline._decode(latents), expected)


@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("kind", KINDS)
def test_captions_are_encoded_as_in_training(kind: str, layer: int, tmp_path: Path, tokenizer: Path) -> None:
    folder = write_model(kind, tmp_path / "encoder")
    entry = f"{{kind: transformers, path: '{folder}', max_tokens: 12, layer: {layer}, precision: fp32}}"
    stored = draw_weights([*FROZEN, f"text.encoders=[{entry}]"], tokenizer)
    write_pipeline(stored, tmp_path / "a")
    (found,) = load(tmp_path / "a").encode(CAPTIONS)
    encoder = build_frozen_encoders(stored.config.text)
    encoder.load(CPU)
    features = encoder.encode_frozen(CAPTIONS, CPU)
    assert features is not None
    (expected,) = features.streams
    tokens_BLT, mask_BL, pooled_BV = found
    assert torch.equal(mask_BL, expected.mask_BL) and pooled_BV is None
    different = (tokens_BLT - expected.tokens_BLT)[mask_BL].abs().max()
    assert different < 1e-4 * expected.tokens_BLT[mask_BL].abs().max()


def several_encoders(folder: Path) -> list[str]:
    """An open_clip tower, one that is trained along, T5 and Qwen3, and an autoencoder."""
    tower, t5 = write_tower(folder / "clip"), write_model("t5", folder / "t5")
    qwen3 = write_model("qwen3", folder / "qwen3")
    encoders = [
        f"{{kind: open_clip, path: 'local-dir:{tower}', max_tokens: 16}}",
        "{kind: sentencepiece, max_tokens: 8}",
        f"{{kind: transformers, path: '{t5}', max_tokens: 32}}",
        f"{{kind: transformers, path: '{qwen3}', max_tokens: 32, layer: -2}}",
    ]
    return [
        *(word for word in TEXT if not word.startswith("text.max_tokens")),
        f"text.encoders=[{', '.join(encoders)}]",
        "model.text_projection=true",
        *autoencoder_settings("flux", folder / "vae"),
    ]


@pytest.mark.parametrize("links", [False, True])
def test_several_encoders_draw_our_pictures(links: bool, tmp_path: Path, tokenizer: Path) -> None:
    """bf16 encoders, whose rounding would show."""
    stored = draw_weights(several_encoders(tmp_path), tokenizer)
    write_pipeline(stored, tmp_path / "a", links=links)
    write_export(stored, tmp_path / "a.safetensors")
    model = load_pipeline(tmp_path / "a.safetensors")
    requests = number_requests(CAPTIONS, seed=1)
    expected = generate_batch(model.networks, requests, model.config.sampling).images_BCHW / 2 + 0.5
    pipeline = load(tmp_path / "a")
    assert {buffer.dtype for buffer in pipeline.text_encoder_4.buffers()} == {torch.float32}
    found = pipeline(CAPTIONS, seed=1, output_type="pt").images
    assert (found - expected).abs().max() < 1e-4
    weights = tmp_path / "a" / "text_encoder_3" / "model.safetensors"
    assert weights.is_symlink() == links
    assert not any(path.is_symlink() for path in (tmp_path / "a" / "transformer").iterdir())


def test_a_weight_file_of_open_clip_brings_its_description(tmp_path: Path, tokenizer: Path) -> None:
    folder = write_tower(tmp_path / "clip")
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "tiny.json").write_text(json.dumps(TOWER))
    open_clip.add_model_config(tmp_path / "named" / "tiny.json")
    weights = folder / "open_clip_model.safetensors"
    entry = f"{{kind: open_clip, path: '{weights}', architecture: tiny, max_tokens: 16, precision: fp32}}"
    stored = draw_weights([*FROZEN, f"text.encoders=[{entry}]"], tokenizer)
    write_pipeline(stored, tmp_path / "a")
    ((tokens_BLT, mask_BL, pooled_BV),) = load(tmp_path / "a").encode(CAPTIONS)
    features = build_frozen_encoders(stored.config.text).encode_frozen(CAPTIONS, CPU)
    assert features is not None
    (expected,) = features.streams
    assert torch.equal(mask_BL, expected.mask_BL)
    torch.testing.assert_close(tokens_BLT, expected.tokens_BLT)
    torch.testing.assert_close(pooled_BV, expected.pooled_BV)


def test_what_a_folder_cannot_hold_is_named(tmp_path: Path, tokenizer: Path) -> None:
    folder = write_model("qwen3", tmp_path / "qwen3")
    entry = f"{{kind: transformers, path: '{folder}', max_tokens: 12}}"
    five = [*FROZEN, "model.text_projection=true", f"text.encoders=[{', '.join([entry] * 5)}]"]
    with pytest.raises(ValueError, match=r"text.encoders has 5 encoders; .* at most 4"):
        write_pipeline(draw_weights(five, tokenizer), tmp_path / "a")
    tree = json.loads((folder / "config.json").read_text())
    inner = json.dumps({"model_type": "qwen3_vl", "text_config": tree})
    (folder / "config.json").write_text(inner)
    with pytest.raises(ValueError, match=r"text.encoders.0.path is a 'qwen3_vl' model of text and pictures"):
        write_pipeline(draw_weights([*FROZEN, f"text.encoders=[{entry}]"], tokenizer), tmp_path / "a")
    settings = autoencoder_settings("flux", tmp_path / "sd-vae")
    stored = draw_weights(settings, tokenizer)
    (tmp_path / "sd-vae").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"autoencoder.path is .*sd-vae"):
        write_pipeline(stored, tmp_path / "a")
    assert not (tmp_path / "a").exists()
