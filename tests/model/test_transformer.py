"""What text, batches and shapes must not change in the network's output, and what they must."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from diffmoe_scale.encoders.text.features import TextStream
from diffmoe_scale.model.condition import Condition
from diffmoe_scale.moe.layer import MoELayer
from diffmoe_scale.moe.routing import Rule, Selection
from diffmoe_scale.nn.embeddings import SizeEmbedding
from tests.model.models import (
    CHANNELS,
    EXPERTS,
    SIZE,
    TEXT_WIDTH,
    VARIANTS,
    WIDTH,
    call,
    disturb,
    disturbed_text_transformer,
    make_transformer,
    text_features,
)

variants = pytest.mark.parametrize("variant", VARIANTS)


@variants
def test_output_is_zero_at_initialisation(variant: str) -> None:
    transformer = make_transformer("text", model=VARIANTS[variant])
    assert call(transformer, text_features()).value_BCHW.abs().max() == 0


def test_experts_stand_in_every_second_block_and_routings_in_their_order() -> None:
    transformer = make_transformer("text", router_init_std=0.5)
    assert [isinstance(block.feed_forward, MoELayer) for block in transformer.blocks] == [
        False,
        True,
        False,
        True,
    ]
    assert [layer.layer_index for layer in transformer.moe_layers()] == [1, 3]
    seen: list[Tensor] = []
    for layer in transformer.moe_layers():
        layer.register_forward_hook(lambda module, arguments, output: seen.append(output[1].mask_SE))
    assert [routing.mask_SE.data_ptr() for routing in call(transformer, text_features()).routings] == [
        mask_SE.data_ptr() for mask_SE in seen
    ]


# Depth 4: the first k blocks have no experts, whatever the rhythm.
@pytest.mark.parametrize("every, first_dense, expected", [(1, 1, [1, 2, 3]), (2, 2, [3]), (1, 3, [3])])
def test_the_first_blocks_are_dense_by_config(every: int, first_dense: int, expected: list[int]) -> None:
    transformer = make_transformer("text", every=every, first_dense=first_dense)
    assert [layer.layer_index for layer in transformer.moe_layers()] == expected


# Latents of 8x8 are images of 32x32: a latent pixel is 4 image pixels wide, a token 8.
@pytest.mark.parametrize(
    "shape, expected", [((4, 4), 2.0), ((2, 8), 2.0), ((4, 6), 1.5), ((8, 8), 1.0), ((8, 12), 1.0)]
)
@pytest.mark.parametrize("router", ["diffmoe", "expert_choice"])
def test_the_capacity_is_that_of_the_images_resolution(
    shape: tuple[int, int], expected: float, router: str
) -> None:
    transformer = make_transformer("class", router=router, capacity_by_resolution=((16, 2.0), (24, 1.5)))
    x_BCHW, condition = torch.randn(2, CHANNELS, *shape), Condition(torch.tensor([1, 2]))
    for rule in ("train", "static"):
        prediction = transformer(x_BCHW, torch.zeros(2), condition, Selection(rule))
        tokens = 2 * shape[0] * shape[1] // 4
        rows_E = prediction.routings[0].mask_SE.sum(0)
        assert rows_E.tolist() == [int(expected * tokens / 2 / EXPERTS) * 2] * EXPERTS, rule


def test_a_dense_model_has_no_routing() -> None:
    transformer = make_transformer("text", num_experts=0)
    assert transformer.moe_layers() == [] and call(transformer, text_features()).routings == []


@variants
def test_image_tokens_see_only_valid_text_tokens(variant: str) -> None:
    transformer, text = disturbed_text_transformer(model=VARIANTS[variant]), text_features()
    expected_BCHW = call(transformer, text).value_BCHW
    garbage_BLT = text.tokens_BLT.where(text.mask_BL[:, :, None], 100.0)
    assert torch.equal(call(transformer, replace(text, tokens_BLT=garbage_BLT)).value_BCHW, expected_BCHW)
    padded = TextStream(
        torch.cat([text.tokens_BLT, 100 * torch.ones(3, 4, TEXT_WIDTH)], 1),
        torch.cat([text.mask_BL, torch.zeros(3, 4, dtype=torch.bool)], 1),
        text.pooled_BV,
    )
    # The softmax sums over more (zero) terms.
    torch.testing.assert_close(call(transformer, padded).value_BCHW, expected_BCHW, rtol=1e-5, atol=1e-5)
    changed_BLT = text.tokens_BLT.clone()
    changed_BLT[:, 1] += 1
    difference_B = (
        (
            call(transformer, replace(text, tokens_BLT=changed_BLT), "threshold").value_BCHW
            - call(transformer, text, "threshold").value_BCHW
        )
        .abs()
        .amax((1, 2, 3))
    )
    assert (difference_B > 1e-3).all()


@variants
@pytest.mark.parametrize("rule", ["threshold", "interval"])
def test_a_samples_output_by_the_predictor_does_not_depend_on_its_batch(rule: Rule, variant: str) -> None:
    transformer, text = disturbed_text_transformer(model=VARIANTS[variant]), text_features()
    with torch.no_grad():
        together_BCHW = call(transformer, text, rule).value_BCHW
        alone_BCHW = torch.cat(
            [call(transformer, text, rule, rows=slice(i, i + 1)).value_BCHW for i in range(3)]
        )
    # The same arithmetic over other numbers of rows.
    torch.testing.assert_close(together_BCHW, alone_BCHW, rtol=1e-5, atol=1e-5)


@variants
def test_bf16_takes_fp32_features_of_a_frozen_text_encoder(variant: str) -> None:
    transformer, text = disturbed_text_transformer(model=VARIANTS[variant]), text_features()
    expected_BCHW = call(transformer, text, "static").value_BCHW
    got = call(transformer.bfloat16(), text, "static")
    assert (
        got.value_BCHW.dtype == torch.float32
        and transformer.get_parameter("blocks.0.attention.qkv.weight").dtype == torch.bfloat16
    )
    # 8 bits through four blocks; tokens near a threshold may change experts.
    assert (got.value_BCHW - expected_BCHW).norm() < 0.1 * expected_BCHW.norm()
    got.value_BCHW.sum().backward()
    assert all(
        parameter.grad.dtype == parameter.dtype
        for parameter in transformer.parameters()
        if parameter.grad is not None
    )


def test_a_patch_that_does_not_divide_the_latents_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"model.patch_size is 3 but latents are 8 wide; choose a divisor of 8"
    ):
        make_transformer("text", patch_size=3)


@pytest.mark.parametrize("positions", ["sincos", "rope2d"])
@pytest.mark.parametrize("shape", [(4, 12), (12, 4), (16, 16)])
def test_other_shapes_keep_their_height_and_width(shape: tuple[int, int], positions: str) -> None:
    transformer = make_transformer("class", model={"positions": positions})
    disturb(transformer)
    x_BCHW = torch.randn(2, CHANNELS, *shape)
    arguments = torch.tensor([3.0, 500.0]), Condition(torch.tensor([1, 2])), Selection()
    prediction = transformer(x_BCHW, *arguments)
    assert prediction.value_BCHW.shape == x_BCHW.shape and prediction.routings[0].mask_SE.shape == (
        2 * shape[0] * shape[1] // 4,
        EXPERTS,
    )
    mirrored = transformer(x_BCHW.flip(3), *arguments).value_BCHW.flip(3)
    assert not torch.allclose(prediction.value_BCHW, mirrored), "columns have places"


@pytest.mark.parametrize("positions", ["sincos", "rope2d"])
@pytest.mark.parametrize("shape", [(8, 8), (16, 16), (4, 12)])
def test_places_are_those_of_position_size(shape: tuple[int, int], positions: str) -> None:
    """A model of pictures of twice the size answers pictures of every size as the one before did."""
    before = make_transformer("class", model={"positions": positions, "image_size": 32})
    model = {"positions": positions, "image_size": 64, "position_size": 32}
    after = make_transformer("class", latent_size=2 * SIZE, model=model)
    apart = make_transformer("class", latent_size=2 * SIZE, model=model | {"position_size": 0})
    x_BCHW = torch.randn(2, CHANNELS, *shape)
    arguments = torch.tensor([3.0, 500.0]), Condition(torch.tensor([1, 2])), Selection()
    answers = []
    for transformer in (before, after, apart):
        disturb(transformer)
        answers.append(transformer(x_BCHW, *arguments).value_BCHW)
    assert torch.equal(answers[0], answers[1])
    assert not torch.allclose(answers[0], answers[2])


def test_size_conditions_start_without_effect_and_then_have_one() -> None:
    embedding = SizeEmbedding(6, WIDTH)
    nn.init.zeros_(embedding.output.weight)
    nn.init.zeros_(embedding.output.bias)
    sizes_BZ = torch.tensor([[64.0, 48, 0, 3, 32, 24], [64, 48, 3, 0, 32, 24]])
    assert (embedding(sizes_BZ) == 0).all()
    disturb(embedding)
    assert not torch.allclose(*embedding(sizes_BZ))
