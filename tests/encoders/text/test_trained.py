import torch
import torch.nn.functional as F
from torch import nn

from diffmoe_scale.config.text import TextConfig
from tests.encoders.text.texts import CLOSE, LONG, SHORT, encode, trained_encoder


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
    assert features.pooled_BV is not None
    (features.tokens_BLT[features.mask_BL].square().sum() + (features.pooled_BV[:, ::2]).sum()).backward()
    without = [
        name for name, weight in encoder.named_parameters() if weight.grad is None or not weight.grad.any()
    ]
    assert not without
    assert not encoder.token_embedding.weight.grad[0].any()


def test_trained_encoder_runs_in_bf16(tokenizer_path):
    encoder = trained_encoder(TextConfig(width=32), tokenizer_path).to(torch.bfloat16)
    features = encode(encoder, [SHORT, LONG])
    assert features.pooled_BV is not None
    assert features.tokens_BLT.dtype == features.pooled_BV.dtype == torch.bfloat16
    assert features.pooled_BV.isfinite().all()


def test_trained_weights_depend_on_the_seed_alone(tokenizer_path):
    first, second, other = (
        trained_encoder(TextConfig(width=32), tokenizer_path, seed=seed).state_dict() for seed in (3, 3, 4)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["token_embedding.weight"], other["token_embedding.weight"])


def test_weights_are_torchs_own_then_those_of_this_encoder_from_one_generator(encoder):
    """As a plain loop: every layer is made, in order, and then initialized again."""
    torch.manual_seed(0)
    nn.Embedding(*encoder.token_embedding.weight.shape)
    widths = [(32, 96), (32, 32), (32, 128), (128, 32)]
    for width_in, width_out in 2 * widths:
        nn.Linear(width_in, width_out)
    embedding = nn.init.normal_(torch.empty_like(encoder.token_embedding.weight), std=1.0)
    position_LT = nn.init.normal_(torch.empty_like(encoder.position_LT), std=0.3)
    expected = [
        nn.init.xavier_uniform_(torch.empty(width_out, width_in)) for width_in, width_out in 2 * widths
    ]
    assert torch.equal(encoder.token_embedding.weight, embedding)
    assert torch.equal(encoder.position_LT, position_LT)
    found = [layer.weight for layer in encoder.blocks.modules() if isinstance(layer, nn.Linear)]
    assert all(torch.equal(weight, other) for weight, other in zip(found, expected, strict=True))
