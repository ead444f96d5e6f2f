import json
import os
import shutil
from typing import Any  # settings of any type are passed on to TextConfig

import open_clip
import pytest
import torch

from diffmoe_scale.config.text import TextConfig, TextEncoderConfig
from diffmoe_scale.encoders.fingerprint import fingerprint
from diffmoe_scale.encoders.text.build import build_text_encoder, stream_widths
from diffmoe_scale.encoders.text.clip_files import unusual_settings
from tests.encoders.text.texts import CLOSE, LONG, SHORT, TOWER, encode, load_encoder


def test_open_clip_gives_penultimate_hidden_states_and_the_pooled_feature(open_clip_encoder, tower):
    captions = [SHORT, LONG]
    features = encode(open_clip_encoder, captions)
    ids_BL = open_clip.SimpleTokenizer(context_length=16)(captions)
    with torch.no_grad():
        x_BLT = tower.token_embedding(ids_BL) + tower.positional_embedding
        for block in tower.transformer.resblocks[:-1]:
            x_BLT = block(x_BLT, attn_mask=tower.attn_mask)
        pooled_BV = tower.encode_text(ids_BL)
    length = features.mask_BL.shape[1]
    torch.testing.assert_close(features.tokens_BLT, x_BLT[:, :length], **CLOSE)
    torch.testing.assert_close(features.pooled_BV, pooled_BV, **CLOSE)


def test_open_clip_mask_keeps_pieces_of_id_zero(open_clip_encoder):
    # 0 is padding behind the end token, and the piece "!" before it.
    tokens_BL = torch.tensor([[49406, 0, 320, 49407, 0], [49406, 320, 320, 320, 49407]])
    assert open_clip_encoder(tokens_BL).mask_BL.tolist() == [[True] * 4 + [False], [True] * 5]


def test_open_clip_is_frozen_and_keeps_no_image_tower(open_clip_encoder):
    open_clip_encoder.load(torch.device("cpu"))
    parameters = dict(open_clip_encoder.named_parameters())
    assert not open_clip_encoder.is_trained and not open_clip_encoder.training
    assert not any(weight.requires_grad for weight in parameters.values())
    assert not any("visual" in name for name in parameters)


def test_open_clip_weight_file_gives_the_same_features_as_its_folder(open_clip_encoder, tower_folder):
    weights = str(tower_folder / "open_clip_model.safetensors")
    config = TextConfig(
        kind="open_clip", open_clip_name="tiny-tower", open_clip_weights=weights, max_tokens=12
    )
    from_file = encode(build_text_encoder(config, tokenizer_path=tower_folder), [LONG])
    assert torch.equal(from_file.tokens_BLT, encode(open_clip_encoder, [LONG]).tokens_BLT)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"open_clip_weights": "{folder}/absent.safetensors"},
            r"text\.open_clip_weights is .*absent\.safetensors",
        ),
        ({"open_clip_weights": "openai"}, r"text\.open_clip_weights is 'openai'"),
        (
            {"open_clip_weights": "local-dir:{folder}/absent"},
            r"text\.open_clip_weights is .*open_clip_config\.json",
        ),
        (
            {
                "open_clip_weights": "{folder}/open_clip_config.json",
                "open_clip_name": "tiny-tower",
                "max_tokens": 12,
            },
            r"text\.open_clip_weights .* does not load as",
        ),
        (
            {"open_clip_weights": "{folder}/open_clip_model.safetensors", "open_clip_name": "ViT-L14"},
            r"text\.open_clip_name is 'ViT-L14'.*ViT-L-14",
        ),
        (
            {
                "open_clip_weights": "{folder}/open_clip_model.safetensors",
                "open_clip_name": "ViT-B-16-SigLIP",
            },
            r"hf_tokenizer_name",
        ),
        (
            {"open_clip_weights": "local-dir:{folder}", "max_tokens": 17},
            r"text\.max_tokens is 17; expected at most 16",
        ),
    ],
)
def test_unfit_open_clip_settings_are_errors_that_name_the_setting(settings, message, tower_folder):
    settings = {
        key: value.format(folder=tower_folder) if isinstance(value, str) else value
        for key, value in settings.items()
    }
    with pytest.raises(ValueError, match=message):
        load_encoder(TextConfig(kind="open_clip", **settings))


def test_widths_are_known_without_reading_weights(tower_folder, open_clip_encoder):
    variants: tuple[dict[str, Any], ...] = (
        {"open_clip_weights": f"local-dir:{tower_folder}"},
        {
            "open_clip_weights": f"{tower_folder}/open_clip_model.safetensors",
            "open_clip_name": "tiny-tower",
        },
    )
    for settings in variants:
        (widths,) = stream_widths(TextConfig(kind="open_clip", max_tokens=12, **settings))
        found = widths.token, widths.pooled
        assert found == (open_clip_encoder.token_width, open_clip_encoder.pooled_width)


class Planted:
    """What a pickle runs when it is read."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "weights.pth"])
def test_a_weight_file_that_would_run_code_is_refused(tmp_path, name):
    torch.save({"state_dict": Planted(f"{tmp_path}/planted")}, tmp_path / name)
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": TOWER, "preprocess_cfg": {}}), encoding="utf-8"
    )
    variants: tuple[dict[str, Any], ...] = (
        {"open_clip_weights": f"local-dir:{tmp_path}"},
        {"open_clip_weights": f"{tmp_path}/{name}", "open_clip_name": "tiny-tower"},
    )
    for settings in variants:
        with pytest.raises(ValueError, match=r"text\.open_clip_weights .* does not load"):
            load_encoder(TextConfig(kind="open_clip", max_tokens=12, **settings))
    assert not (tmp_path / "planted").exists()


def test_the_fingerprint_is_kept_beside_the_weights(tower_folder, open_clip_encoder):
    assert open_clip_encoder.tower is not None
    heads = ("heads", TOWER["text_cfg"]["heads"])  # not width / 64
    expected = fingerprint(open_clip_encoder, "OpenClipEncoder", 12, heads)
    assert open_clip_encoder.fingerprint() == expected
    assert expected in (tower_folder / "fingerprint.json").read_text(encoding="utf-8")
    weights = f"{tower_folder}/open_clip_model.safetensors"
    config = TextConfig(
        kind="open_clip", open_clip_name="tiny-tower", open_clip_weights=weights, max_tokens=12
    )
    from_file = build_text_encoder(config, tokenizer_path=tower_folder)
    assert from_file.fingerprint() == expected
    assert expected in (tower_folder / f"{weights}.fingerprint.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "unusual"),
    [
        ("ViT-B-32", ()),
        ("ViT-bigG-14", ()),
        ("ViT-B-32-quickgelu", (("quick_gelu", True),)),
    ],
)
def test_architectures_that_share_their_weights_are_told_apart(name, unusual):
    assert unusual_settings(open_clip.get_model_config(name)) == unusual


def test_another_activation_is_another_fingerprint(tower_folder, tmp_path, open_clip_encoder):
    shutil.copy(tower_folder / "open_clip_model.safetensors", tmp_path)
    text = json.dumps({"model_cfg": TOWER | {"quick_gelu": True}})
    (tmp_path / "open_clip_config.json").write_text(text, encoding="utf-8")
    config = TextConfig(kind="open_clip", open_clip_weights=f"local-dir:{tmp_path}", max_tokens=12)
    assert load_encoder(config).fingerprint() != open_clip_encoder.fingerprint()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "\xff",
        "[" * 100_000,
        '{"model_cfg": null}',
        '{"model_cfg": {"text_cfg": []}}',
        '{"model_cfg": {"embed_dim": 24}}',
        '{"model_cfg": {"embed_dim": -1, "vision_cfg": {}, "text_cfg": {}}}',
        json.dumps({"model_cfg": TOWER | {"text_cfg": TOWER["text_cfg"] | {"layers": 1}}}),
        json.dumps({"model_cfg": TOWER | {"text_cfg": TOWER["text_cfg"] | {"context_length": 1e400}}}),
        json.dumps({"model_cfg": TOWER | {"text_cfg": TOWER["text_cfg"] | {"heads": 0}}}),
        json.dumps({"model_cfg": TOWER | {"unknown": 1}}),
    ],
)
def test_a_damaged_description_is_an_error_that_names_the_setting(tower_folder, tmp_path, text):
    shutil.copy(tower_folder / "open_clip_model.safetensors", tmp_path)
    (tmp_path / "open_clip_config.json").write_text(text, encoding="latin-1")
    config = TextConfig(kind="open_clip", open_clip_weights=f"local-dir:{tmp_path}", max_tokens=12)
    with pytest.raises(ValueError, match=r"text\.open_clip_weights"):
        load_encoder(config)


def test_bf16_gives_fp32_features_near_those_of_fp32_and_the_same_fingerprint(
    tower_folder, open_clip_encoder, caplog
):
    path = f"local-dir:{tower_folder}"
    entry = TextEncoderConfig(kind="open_clip", path=path, max_tokens=12, precision="bf16")
    encoder = load_encoder(TextConfig(encoders=(entry,)))
    assert {weight.dtype for weight in encoder.parameters()} == {torch.bfloat16}
    found, exact = encode(encoder, [SHORT, LONG]), encode(open_clip_encoder, [SHORT, LONG])
    for name in ("tokens_BLT", "pooled_BV"):
        ours, expected = getattr(found, name), getattr(exact, name)
        assert ours.dtype == torch.float32 and (ours - expected).norm() < 0.03 * expected.norm()
    assert encoder.fingerprint() == open_clip_encoder.fingerprint()
    assert "randomly" not in caplog.text
