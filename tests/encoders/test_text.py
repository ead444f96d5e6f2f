import json

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from diffmoe_scale.config.encoders import TextConfig
from diffmoe_scale.encoders.text.build import build_text_encoder
from diffmoe_scale.encoders.text.features import TextFeatures
from diffmoe_scale.encoders.text.tokenizer import load_tokenizer, train_tokenizer

CAPTIONS = [
    f"{count} {color} {shape}s left of a {other} star"
    for count in ("two", "three")
    for color in ("red", "blue", "green")
    for shape in ("circle", "square")
    for other in ("yellow", "purple")
]
SHORT, LONG = "two red circles", "three green squares left of a yellow star"
# fp32 sums in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
TOWER = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3},
}


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "tokenizer.model"
    train_tokenizer(CAPTIONS, vocabulary=512, path=path)
    return path


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    return open_clip.CLIP(**TOWER).eval()


@pytest.fixture(scope="module")
def tower_folder(tmp_path_factory, tower):
    folder = tmp_path_factory.mktemp("tower")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TOWER, "preprocess_cfg": {}}))
    save_file(tower.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "tiny-tower.json").write_text(json.dumps(TOWER))
    open_clip.add_model_config(folder / "tiny-tower.json")
    return folder


@pytest.fixture(scope="module")
def open_clip_encoder(tower_folder):
    config = TextConfig(kind="open_clip", open_clip_weights=f"local-dir:{tower_folder}", max_tokens=12)
    return build_text_encoder(config, tokenizer_path=tower_folder / "unused")


@pytest.fixture(scope="module")
def encoder(tokenizer_path):
    return trained_encoder(TextConfig(width=32, depth=2, heads=4, max_tokens=24), tokenizer_path)


@pytest.fixture(params=["encoder", "open_clip_encoder"])
def any_encoder(request):
    return request.getfixturevalue(request.param)


def trained_encoder(config, tokenizer_path, *, seed=0):
    encoder = build_text_encoder(config, tokenizer_path=tokenizer_path)
    encoder.to_empty(device="cpu").initialize(seed)
    return encoder


def encode(encoder, captions) -> TextFeatures:
    return encoder(encoder.tokenize(captions))


def test_features_have_the_promised_shapes(any_encoder):
    tokens_BL = any_encoder.tokenize([SHORT, "", LONG])
    features = any_encoder(tokens_BL)
    assert tokens_BL.dtype == torch.int64
    assert features.tokens_BLT.shape == (*tokens_BL.shape, any_encoder.token_width)
    assert features.mask_BL.shape == tokens_BL.shape and features.mask_BL.dtype == torch.bool
    assert features.pooled_BV.shape == (3, any_encoder.pooled_width)


def test_padding_changes_no_feature_of_a_valid_token(any_encoder):
    alone, padded = encode(any_encoder, [SHORT]), encode(any_encoder, [SHORT, LONG])
    length = alone.mask_BL.shape[1]
    assert padded.mask_BL.shape[1] > length
    assert alone.mask_BL.all() and padded.mask_BL[0].sum() == length
    torch.testing.assert_close(padded.tokens_BLT[:1, :length], alone.tokens_BLT, **CLOSE)
    torch.testing.assert_close(padded.pooled_BV[:1], alone.pooled_BV, **CLOSE)


def test_long_captions_are_cut_before_their_end_token_and_counted(any_encoder):
    tokenizer = any_encoder.tokenizer
    captions, cut = tokenizer.num_captions, tokenizer.num_cut
    tokens_BL = any_encoder.tokenize([SHORT, " ".join([LONG] * 9)])
    assert tokens_BL.shape[1] == tokenizer.max_tokens
    assert tokens_BL[1, -1] == tokenizer.end
    assert (tokenizer.num_captions - captions, tokenizer.num_cut - cut) == (2, 1)


def test_a_caption_that_just_fits_is_not_cut(any_encoder):
    tokenizer = any_encoder.tokenizer
    cut = tokenizer.num_cut
    tokenizer.split, split = (
        lambda captions: [[7] * (tokenizer.max_tokens - len(tokenizer.start) - 1)],
        tokenizer.split,
    )
    assert any_encoder.tokenize(["x"]).shape[1] == tokenizer.max_tokens
    tokenizer.split = split
    assert tokenizer.num_cut == cut


def test_tokenizer_has_t5_ids_and_bytes_for_unseen_characters(tokenizer_path):
    processor = load_tokenizer(tokenizer_path, vocabulary=512)
    assert (processor.pad_id(), processor.eos_id(), processor.unk_id()) == (0, 1, 2)
    ids = processor.encode("ein Schloß 城")
    assert 2 not in ids
    assert processor.decode(ids) == "ein Schloß 城"


def test_same_captions_give_the_same_tokenizer_file(tokenizer_path, tmp_path):
    train_tokenizer(iter(CAPTIONS), vocabulary=512, path=tmp_path / "deeper" / "tokenizer.model")
    assert (tmp_path / "deeper" / "tokenizer.model").read_bytes() == tokenizer_path.read_bytes()
    assert [file.name for file in (tmp_path / "deeper").iterdir()] == ["tokenizer.model"]


@pytest.mark.parametrize("captions", [[], ["", "  "]])
def test_tokenizer_without_captions_is_an_error(captions, tmp_path):
    with pytest.raises(ValueError, match="no captions"):
        train_tokenizer(captions, vocabulary=512, path=tmp_path / "tokenizer.model")
    assert not list(tmp_path.iterdir())


def test_too_small_a_vocabulary_is_an_error_that_names_the_smallest_possible(tmp_path):
    # 256 bytes, pad, end, unknown, and the captions' characters: a, b and the word boundary.
    with pytest.raises(ValueError, match=r"text\.vocabulary is 100; expected at least 262"):
        train_tokenizer(["ab ba"], vocabulary=100, path=tmp_path / "tokenizer.model")
    train_tokenizer(["ab ba"], vocabulary=262, path=tmp_path / "tokenizer.model")


def test_missing_tokenizer_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path / "tokenizer.model")):
        build_text_encoder(TextConfig(), tokenizer_path=tmp_path / "tokenizer.model")


def test_tokenizer_with_more_pieces_than_the_vocabulary_is_an_error(tokenizer_path):
    with pytest.raises(ValueError, match=r"text\.vocabulary is 257"):
        build_text_encoder(TextConfig(vocabulary=257), tokenizer_path=tokenizer_path)


def test_empty_caption_is_only_the_end_token(encoder):
    assert encoder.tokenize([""]).tolist() == [[1]]


def test_pooled_is_the_mean_of_the_valid_tokens(encoder):
    features = encode(encoder, [SHORT, LONG])
    expected = torch.stack([features.tokens_BLT[row, features.mask_BL[row]].mean(0) for row in range(2)])
    torch.testing.assert_close(features.pooled_BV, expected, **CLOSE)


def test_encoder_equals_torchs_transformer_with_the_same_weights(encoder):
    tokens_BL = encoder.tokenize([SHORT, LONG])
    x_BLT = encoder.token_embedding(tokens_BL) + encoder.position_LT[: tokens_BL.shape[1]]
    for block in encoder.blocks:
        plain = nn.TransformerEncoderLayer(
            32, 4, 128, 0.0, lambda x: F.gelu(x, approximate="tanh"), batch_first=True, norm_first=True
        )
        names = {
            "self_attn.in_proj_": "qkv.",
            "self_attn.out_proj.": "projection.",
            "linear1.": "w_in.",
            "linear2.": "w_out.",
            "norm1.": "attention_norm.",
            "norm2.": "feed_forward_norm.",
        }
        state = block.state_dict()
        plain.load_state_dict(
            {
                theirs + part: state[ours + part]
                for theirs, ours in names.items()
                for part in ("weight", "bias")
            }
        )
        x_BLT = plain(x_BLT, src_key_padding_mask=tokens_BL == 0)
    features = encoder(tokens_BL)
    expected = F.layer_norm(x_BLT, (32,))
    torch.testing.assert_close(features.tokens_BLT[features.mask_BL], expected[features.mask_BL], **CLOSE)


def test_every_weight_of_the_trained_encoder_gets_a_gradient_and_pads_give_none(encoder):
    encoder.zero_grad()
    features = encode(encoder, [SHORT, LONG])
    (features.tokens_BLT[features.mask_BL].square().sum() + (features.pooled_BV[:, ::2]).sum()).backward()
    without = [
        name for name, weight in encoder.named_parameters() if weight.grad is None or not weight.grad.any()
    ]
    assert not without
    assert not encoder.token_embedding.weight.grad[0].any()


def test_trained_encoder_runs_in_bf16(tokenizer_path):
    encoder = trained_encoder(TextConfig(width=32), tokenizer_path).to(torch.bfloat16)
    features = encode(encoder, [SHORT, LONG])
    assert features.tokens_BLT.dtype == features.pooled_BV.dtype == torch.bfloat16
    assert features.pooled_BV.isfinite().all()


def test_trained_weights_depend_on_the_seed_alone(tokenizer_path):
    first, second, other = (
        trained_encoder(TextConfig(width=32), tokenizer_path, seed=seed).state_dict() for seed in (3, 3, 4)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["token_embedding.weight"], other["token_embedding.weight"])


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
            {"open_clip_weights": "{folder}/open_clip_config.json", "open_clip_name": "tiny-tower"},
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
        build_text_encoder(TextConfig(kind="open_clip", **settings), tokenizer_path=tower_folder)
