import math

import pytest
import torch
from torch import Tensor, nn

from diffmoe_scale.nn.attention import CrossAttention, HeadNorm, JointAttention, SelfAttention, attention
from diffmoe_scale.nn.rope import rotate, rotation_2d


# 257 queries take the fused kernel, 16 the plain one.
@pytest.mark.parametrize("num_tokens", [16, 257])
def test_attention_is_a_softmax_over_the_keys_that_count(num_tokens: int) -> None:
    query, key, value = torch.randn(2, 2, num_tokens, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 8)
    is_valid_BL = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    logits = (query @ key.transpose(-1, -2) / 8**0.5).masked_fill(~is_valid_BL[:, None, None, :], -math.inf)
    got = attention(query, key, value, is_valid_BL[:, None, None, :])
    torch.testing.assert_close(got, logits.softmax(-1) @ value, rtol=1e-5, atol=1e-5)


def test_attention_in_bf16_to_few_keys_is_rounded_only_where_it_enters_and_leaves() -> None:
    parts = [torch.randn(2, 2, 64, 8).mul(3).bfloat16().requires_grad_() for _ in range(3)]
    exact = [part.detach().float().requires_grad_() for part in parts]
    answer, expected = attention(*parts), attention(*exact)
    gradient = torch.randn(2, 2, 64, 8).bfloat16()
    answer.backward(gradient)
    expected.backward(gradient.float())
    assert torch.equal(answer, expected.bfloat16())
    for part, full in zip(parts, exact, strict=True):
        assert part.grad is not None and full.grad is not None
        assert torch.equal(part.grad, full.grad.bfloat16())


def test_cross_attention_of_one_token_is_its_value_for_every_query() -> None:
    layer = CrossAttention(8, 2, 3)
    text_BLT = torch.randn(2, 4, 3)
    mask_BL = torch.tensor([[False, True, False, False]] * 2)
    _, value_BD = layer.key_value(text_BLT[:, 1]).chunk(2, dim=-1)
    expected_BND = layer.projection(value_BD)[:, None].expand(2, 5, 8)
    torch.testing.assert_close(layer(torch.randn(2, 5, 8), text_BLT, mask_BL), expected_BND)


def normalized(x: Tensor, scale_d: Tensor) -> Tensor:
    """RMSNorm, written out."""
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * scale_d


def heads_of(x_BNX: Tensor, heads: int) -> list[Tensor]:
    """[B, N, d] of each head."""
    return list(x_BNX.chunk(heads, dim=-1))


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1) @ value


def with_scales(layer: SelfAttention | CrossAttention) -> tuple[Tensor, Tensor]:
    """Scales of queries and keys that differ from their first value."""
    scales = layer.get_parameter("query_norm.weight"), layer.get_parameter("key_norm.weight")
    for scale in scales:
        assert torch.equal(scale, torch.ones_like(scale))
        nn.init.uniform_(scale, 0.5, 2.0)
    return scales


def test_self_attention_with_normalized_and_turned_heads_is_the_plain_loop() -> None:
    layer, x_BND = SelfAttention(16, 2, qk_norm="rms"), torch.randn(3, 6, 16)
    rotation = rotation_2d(2, 3, 8, base=2)
    query_scale, key_scale = with_scales(layer)
    query, key, value = (heads_of(part, 2) for part in layer.qkv(x_BND).chunk(3, dim=-1))
    answers = []
    for head in range(2):
        turned = (
            rotate(normalized(query[head], query_scale)[:, None], rotation)[:, 0],
            rotate(normalized(key[head], key_scale)[:, None], rotation)[:, 0],
        )
        answers.append(attend(*turned, value[head]))
    torch.testing.assert_close(layer(x_BND, rotation), layer.projection(torch.cat(answers, -1)))


def test_cross_attention_with_normalized_heads_is_the_plain_loop() -> None:
    layer, x_BND, text_BLT = (
        CrossAttention(16, 2, 5, qk_norm="rms"),
        torch.randn(3, 6, 16),
        torch.randn(3, 4, 5),
    )
    query_scale, key_scale = with_scales(layer)
    key_BLD, value_BLD = layer.key_value(text_BLT).chunk(2, dim=-1)
    answers = [
        attend(normalized(query, query_scale), normalized(key, key_scale), value)
        for query, key, value in zip(
            *(heads_of(part, 2) for part in (layer.query(x_BND), key_BLD, value_BLD)), strict=True
        )
    ]
    mask_BL = torch.ones(3, 4, dtype=torch.bool)
    torch.testing.assert_close(
        layer(x_BND, text_BLT, mask_BL), layer.projection(torch.cat(answers, -1)), rtol=1e-5, atol=1e-6
    )


def test_normalized_heads_bound_the_logits_of_any_input() -> None:
    layer = SelfAttention(16, 2, qk_norm="rms")
    query, key = (norm(1e4 * torch.randn(1, 2, 5, 8)) for norm in (layer.query_norm, layer.key_norm))
    # Both have length sqrt(d): the logit is at most d / sqrt(d).
    assert (query @ key.transpose(-1, -2) / 8**0.5).abs().max() <= 8**0.5 + 1e-5


def test_plain_heads_have_no_weights_of_their_own() -> None:
    assert {name for name, _ in SelfAttention(16, 2).named_parameters()} == {
        f"{layer}.{kind}" for layer in ("qkv", "projection") for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("qk_norm", ["none", "rms"])
@pytest.mark.parametrize("is_last", [False, True])
def test_joint_attention_is_the_plain_loop_over_samples_heads_and_valid_tokens(
    qk_norm: HeadNorm, is_last: bool
) -> None:
    layer = JointAttention(16, 2, qk_norm=qk_norm, is_last=is_last)
    for name, parameter in layer.named_parameters():
        if "norm" in name:
            nn.init.uniform_(parameter, 0.5, 2.0)
    scales = {name: p for name, p in layer.named_parameters() if "norm" in name}
    x_BND, text_BLD = torch.randn(3, 6, 16), torch.randn(3, 5, 16)
    valid, rotation = (5, 2, 1), rotation_2d(2, 3, 8, base=2)
    mask_BL = torch.arange(5) < torch.tensor(valid)[:, None]
    got_BND, got_text_BLD = layer(x_BND, text_BLD, mask_BL, rotation)

    def norm(x: Tensor, name: str) -> Tensor:
        scale = scales.get(f"{name}.weight")
        return x if scale is None else normalized(x, scale)

    for sample, length in enumerate(valid):
        image = layer.qkv(x_BND[sample]).chunk(3, dim=-1)
        text = layer.text_qkv(text_BLD[sample, :length]).chunk(2 if is_last else 3, dim=-1)
        answers = []
        for head in range(2):
            query, key, value = (part[:, 8 * head : 8 * head + 8] for part in image)
            *text_query, text_key, text_value = (part[:, 8 * head : 8 * head + 8] for part in text)
            query, key = (
                rotate(norm(part, name)[None, None], rotation)[0, 0]
                for part, name in ((query, "query_norm"), (key, "key_norm"))
            )
            queries = torch.cat([query, *(norm(part, "text_query_norm") for part in text_query)])
            keys = torch.cat([key, norm(text_key, "text_key_norm")])
            answers.append(attend(queries, keys, torch.cat([value, text_value])))
        joined = torch.cat(answers, dim=-1)
        torch.testing.assert_close(got_BND[sample], layer.projection(joined[:6]), rtol=1e-5, atol=1e-6)
        if is_last:
            assert got_text_BLD is None and len(joined) == 6
        else:
            expected = layer.get_submodule("text_projection")(joined[6:])
            torch.testing.assert_close(got_text_BLD[sample, :length], expected, rtol=1e-5, atol=1e-6)
