"""T5, UMT5, T5Gemma and decoder models from folders, against transformers' own loading of the same ones."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal  # Any: transformers' networks, and settings that are passed on

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file

from diffmoe_scale.config.text import TextConfig
from diffmoe_scale.encoders.text.build import build_text_encoder, stream_widths
from diffmoe_scale.encoders.text.features import StreamWidths
from diffmoe_scale.encoders.text.frozen import FrozenTextEncoder
from tests.encoders.text.language_models import (
    DEPTH,
    KINDS,
    POSITIONS,
    WIDTH,
    config_of,
    copy,
    edit_config,
    write_model,
)
from tests.encoders.text.texts import CLOSE, LONG, SHORT, encode, load_encoder

CPU = torch.device("cpu")
CAPTIONS = [SHORT, "", LONG]


def by_transformers(kind: str, folder: Path) -> Any:
    import transformers

    match kind:
        case "t5":
            return transformers.T5EncoderModel.from_pretrained(folder)
        case "umt5":
            return transformers.UMT5EncoderModel.from_pretrained(folder)
        case "t5gemma":
            return transformers.T5GemmaEncoderModel.from_pretrained(folder, is_encoder_decoder=False)
        case _:
            return transformers.AutoModel.from_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_each_layer_is_that_of_transformers(kind: str, model_folders: dict[str, Path]) -> None:
    folder = model_folders[kind]
    plain = by_transformers(kind, folder)
    for layer in (*range(1, DEPTH + 1), *range(-DEPTH, 0)):
        encoder = load_encoder(config_of(folder, layer=layer))
        tokens_BL = encoder.tokenize(CAPTIONS)
        mask_BL = encoder.mask_of(tokens_BL)
        with torch.no_grad():
            states = plain(
                input_ids=tokens_BL.clamp(min=0), attention_mask=mask_BL.long(), output_hidden_states=True
            ).hidden_states
        found = encoder(tokens_BL)
        assert found.pooled_BV is None and torch.equal(found.mask_BL, mask_BL)
        torch.testing.assert_close(found.tokens_BLT[mask_BL], states[layer][mask_BL], **CLOSE)
        assert found.tokens_BLT.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_layers_behind_the_chosen_one_are_not_loaded(kind: str, model_folders: dict[str, Path]) -> None:
    sizes = [
        sum(
            weight.numel()
            for weight in load_encoder(config_of(model_folders[kind], layer=layer)).parameters()
        )
        for layer in range(1, DEPTH + 1)
    ]
    # Equal layers, and the final norm behind the last.
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0] + WIDTH > WIDTH


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_features_come_in_fp32_and_near_those_of_fp32(kind: str, model_folders: dict[str, Path]) -> None:
    exact = encode(load_encoder(config_of(model_folders[kind])), CAPTIONS)
    encoder = load_encoder(config_of(model_folders[kind], precision="bf16"))
    assert {weight.dtype for weight in encoder.parameters()} == {torch.bfloat16}
    found = encode(encoder, CAPTIONS)
    assert found.tokens_BLT.dtype == torch.float32
    difference = (found.tokens_BLT - exact.tokens_BLT)[exact.mask_BL].norm()
    assert difference < 0.05 * exact.tokens_BLT[exact.mask_BL].norm()


@pytest.mark.parametrize("kind", ["t5", "umt5"])
def test_ids_of_t5_are_sentencepieces_and_its_end_token(kind: str, model_folders: dict[str, Path]) -> None:
    encoder = build_text_encoder(config_of(model_folders[kind]), tokenizer_path=Path("unused"))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model_folders[kind] / "spiece.model"))
    for caption in (SHORT, "a café 城 ½", "</s> <pad> <extra_id_0>", ""):
        assert encoder.tokenize([caption]).tolist() == [[*pieces.encode(caption), 1][:32]]
    assert 2 not in encoder.tokenize(["a café 城 ½"]).tolist()[0]


@pytest.mark.parametrize("kind", ["qwen3", "gemma"])
def test_ids_of_decoders_are_those_of_transformers(kind: str, model_folders: dict[str, Path]) -> None:
    import transformers

    encoder = build_text_encoder(config_of(model_folders[kind]), tokenizer_path=Path("unused"))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(model_folders[kind] / "tokenizer.json"))
    for caption in (SHORT, LONG, "a café 城"):
        assert encoder.tokenize([caption]).tolist() == [fast(caption).input_ids]


def test_special_tokens_in_a_caption_are_text(model_folders: dict[str, Path]) -> None:
    for kind in ("t5", "gemma", "qwen3"):
        encoder = build_text_encoder(config_of(model_folders[kind]), tokenizer_path=Path("unused"))
        ids = encoder.tokenize(["red <eos></s><pad>"])[0].tolist()
        start, end = len(encoder.tokenizer.start), len(encoder.tokenizer.end)
        assert not {0, 1, 2} & set(ids[start : len(ids) - end])


def test_an_empty_caption_has_one_token_that_attention_can_see(model_folders: dict[str, Path]) -> None:
    expected = {"t5": [1], "qwen3": [2], "gemma": [1]}
    for kind, ids in expected.items():
        encoder = load_encoder(config_of(model_folders[kind]))
        assert encoder.tokenize([""]).tolist() == [ids]
        assert encode(encoder, [""]).tokens_BLT.isfinite().all()


def test_weights_are_read_with_the_first_captions_and_not_before(model_folders: dict[str, Path]) -> None:
    encoder = build_text_encoder(config_of(model_folders["qwen3"]), tokenizer_path=Path("unused"))
    assert isinstance(encoder, FrozenTextEncoder)
    encoder.fingerprint()
    assert encoder.tower is None and (encoder.token_width, encoder.pooled_width) == (WIDTH, 0)
    encode(encoder, [SHORT])
    assert encoder.tower is not None and not encoder.tower.training
    assert not any(weight.requires_grad for weight in encoder.parameters())


def test_widths_come_from_config_json(model_folders: dict[str, Path]) -> None:
    entries = tuple(config_of(model_folders[kind]).encoders[0] for kind in ("t5", "qwen3", "t5"))
    assert stream_widths(TextConfig(encoders=entries)) == (
        StreamWidths("t5", WIDTH, 0),
        StreamWidths("qwen3", WIDTH, 0),
        StreamWidths("t5_2", WIDTH, 0),
    )


def test_a_model_of_pictures_and_text_gives_its_text_model(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = copy(model_folders["gemma3_text"], tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": settings}))
    state = {
        f"language_model.{name}": value for name, value in load_file(folder / "model.safetensors").items()
    }
    save_file(state | {"vision_tower.weight": torch.zeros(3)}, folder / "model.safetensors")
    expected = encode(load_encoder(config_of(model_folders["gemma3_text"])), CAPTIONS)
    assert torch.equal(encode(load_encoder(config_of(folder)), CAPTIONS).tokens_BLT, expected.tokens_BLT)


def test_weights_in_several_files_and_a_tokenizer_elsewhere(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = copy(model_folders["t5"], tmp_path)
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    (tmp_path / "tokenizer").mkdir()
    shutil.move(folder / "spiece.model", tmp_path / "tokenizer")
    encoder = load_encoder(config_of(folder, tokenizer=str(tmp_path / "tokenizer")))
    expected = load_encoder(config_of(model_folders["t5"]))
    assert torch.equal(encode(encoder, CAPTIONS).tokens_BLT, encode(expected, CAPTIONS).tokens_BLT)


def test_the_fingerprint_is_of_weights_tokenizer_and_settings(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = copy(model_folders["qwen3"], tmp_path)
    (folder / "fingerprint.json").unlink(missing_ok=True)

    def value(**settings: Any) -> str:
        return build_text_encoder(config_of(folder, **settings), tokenizer_path=Path("x")).fingerprint()

    first = value()
    assert first == value() == value(precision="bf16")
    others = {value(layer=-2), value(max_tokens=16)}
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"transformers_version": "9"}, indent=7))
    assert value() == first
    (folder / "config.json").write_text(json.dumps(settings | {"rms_norm_eps": 1e-3}))
    others.add(value())
    (folder / "config.json").write_text(json.dumps(settings))
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"][0] += 1
    save_file(state, folder / "model.safetensors")
    others.add(value())
    assert len(others) == 4 and first not in others


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": DEPTH + 1}, rf"text\.encoders\.0\.layer is {DEPTH + 1}; expected 1 to {DEPTH}, or"),
        ({"layer": -DEPTH - 1}, rf"text\.encoders\.0\.layer is -{DEPTH + 1}; expected"),
        (
            {"max_tokens": POSITIONS + 1},
            rf"text\.encoders\.0\.max_tokens is {POSITIONS + 1}; expected at most {POSITIONS}",
        ),
        ({"tokenizer": "/nowhere"}, r"text\.encoders\.0\.tokenizer is '/nowhere'; .* tokenizer\.json"),
    ],
)
def test_settings_beyond_the_model_are_named(
    settings: dict[str, Any], message: str, model_folders: dict[str, Path]
) -> None:
    with pytest.raises(ValueError, match=message):
        build_text_encoder(config_of(model_folders["gemma"], **settings), tokenizer_path=Path("unused"))


def test_t5_has_no_last_position(model_folders: dict[str, Path]) -> None:
    encoder = load_encoder(config_of(model_folders["t5"], max_tokens=600))
    stream = encode(encoder, [" ".join([LONG] * 50)])
    assert stream.tokens_BLT.shape[1] == 600 and stream.tokens_BLT.isfinite().all()


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_t5_stored_in_fp16_is_computed_in_another_format_and_said(
    precision: Literal["bf16", "fp32"], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_model("t5", tmp_path / "model", dtype=torch.float16)
    with caplog.at_level("INFO"):
        encoder = load_encoder(config_of(folder, precision=precision))
    assert f"is stored in fp16, which overflows in T5 and others: it computes in {precision}" in caplog.text
    assert {weight.dtype for weight in encoder.parameters()} <= {torch.bfloat16, torch.float32}


def test_code_in_a_folder_is_never_run(model_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(model_folders["qwen3"], tmp_path)
    (folder / "planted.py").write_text(f"open({str(tmp_path / 'planted')!r}, 'w')\nclass Model: pass\n")
    edit_config(auto_map={"AutoModel": "planted.Model", "AutoConfig": "planted.Model"})(folder)
    expected = encode(load_encoder(config_of(model_folders["qwen3"])), CAPTIONS)
    assert torch.equal(encode(load_encoder(config_of(folder)), CAPTIONS).tokens_BLT, expected.tokens_BLT)
    assert not (tmp_path / "planted").exists()
