"""Streams of several text encoders in the network, against a plain computation of each."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.encoders.text.features import StreamWidths, TextFeatures, TextStream
from diffmoe_scale.model.condition import Condition
from diffmoe_scale.model.initialization import initialize_transformer
from diffmoe_scale.model.text import join_streams
from diffmoe_scale.model.transformer import DiffusionTransformer, Prediction
from diffmoe_scale.moe.routing import Selection
from tests.model.models import WIDTH, disturb
from tests.moe.layers import alone

WIDTHS = (StreamWidths("clip", 6, 5), StreamWidths("t5", 10, 0), StreamWidths("qwen", 7, 3))


def transformer_of(streams: tuple[StreamWidths, ...], *, text_projection: bool) -> DiffusionTransformer:
    config = ModelConfig(
        channels=4, patch_size=2, depth=2, width=WIDTH, heads=2, text_projection=text_projection
    )
    transformer = DiffusionTransformer(
        config,
        MoEConfig(num_experts=0),
        latent_size=8,
        output_channels=4,
        text_streams=streams,
        groups=alone(),
    )
    initialize_transformer(transformer, 0)
    disturb(transformer)
    return transformer


def stream_of(widths: StreamWidths, length: int, *, seed: int = 0) -> TextStream:
    generator = torch.Generator().manual_seed(seed)
    mask_BL = torch.arange(length) < torch.tensor([[1], [length]])
    pooled_BV = torch.randn(2, widths.pooled, generator=generator) if widths.pooled else None
    return TextStream(100 * torch.randn(2, length, widths.token, generator=generator), mask_BL, pooled_BV)


def features() -> TextFeatures:
    return TextFeatures(tuple(stream_of(widths, 2 + n, seed=n) for n, widths in enumerate(WIDTHS)))


def call(transformer: DiffusionTransformer, text: TextFeatures) -> Tensor:
    x_BCHW = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    prediction: Prediction = transformer(
        x_BCHW, torch.tensor([1.0, 300.0]), Condition(text=text), Selection()
    )
    return prediction.value_BCHW


def test_each_stream_is_normalized_and_projected_and_all_stand_one_after_another() -> None:
    transformer, text = transformer_of(WIDTHS, text_projection=True), features()
    joined = join_streams(text, transformer.text_projections, torch.float32)
    assert joined.tokens_BLT.shape == (2, 2 + 3 + 4, WIDTH)
    assert joined.mask_BL.tolist() == [
        [True, False, True, False, False, True, False, False, False],
        [True] * 9,
    ]
    state, first = transformer.state_dict(), 0
    for number, stream in enumerate(text.streams):
        prefix = f"text_projections.{number}"
        weight_DT, bias_D = state[f"{prefix}.linear.weight"], state[f"{prefix}.linear.bias"]
        for b in range(2):
            for token in range(stream.tokens_BLT.shape[1]):
                x_T = stream.tokens_BLT[b, token].double()
                x_T = x_T / (x_T.square().mean() + 1e-6).sqrt() * state[f"{prefix}.norm.weight"]
                expected_D = weight_DT.double() @ x_T + bias_D
                torch.testing.assert_close(
                    joined.tokens_BLT[b, first + token].double(), expected_D, rtol=1e-5, atol=1e-5
                )
        first += stream.tokens_BLT.shape[1]
    assert joined.pooled_BV is not None
    pooled = [stream.pooled_BV for stream in text.streams if stream.pooled_BV is not None]
    assert torch.equal(joined.pooled_BV, torch.cat(pooled, 1))


def test_padding_of_one_stream_changes_nothing() -> None:
    transformer, text = transformer_of(WIDTHS, text_projection=True), features()
    expected_BCHW = call(transformer, text)
    for number, stream in enumerate(text.streams):
        padded = replace(
            stream,
            tokens_BLT=torch.nn.functional.pad(stream.tokens_BLT, (0, 0, 0, 3), value=50.0),
            mask_BL=torch.nn.functional.pad(stream.mask_BL, (0, 3)),
        )
        streams = (*text.streams[:number], padded, *text.streams[number + 1 :])
        torch.testing.assert_close(
            call(transformer, TextFeatures(streams)), expected_BCHW, rtol=1e-5, atol=1e-5
        )


def test_every_stream_and_every_pooled_feature_has_an_effect() -> None:
    transformer, text = transformer_of(WIDTHS, text_projection=True), features()
    expected_BCHW = call(transformer, text)
    for number, stream in enumerate(text.streams):
        changes = [replace(stream, tokens_BLT=stream.tokens_BLT.flip(-1))]
        if stream.pooled_BV is not None:
            changes.append(replace(stream, pooled_BV=stream.pooled_BV + 1))
        for changed in changes:
            streams = (*text.streams[:number], changed, *text.streams[number + 1 :])
            difference = (call(transformer, TextFeatures(streams)) - expected_BCHW).abs().amax((1, 2, 3))
            assert (difference > 1e-4).all()


@pytest.mark.parametrize("pooled", [0, 5])
@pytest.mark.parametrize("text_projection", [False, True])
def test_one_stream_with_and_without_pooled_features(pooled: int, text_projection: bool) -> None:
    widths = StreamWidths("one", 6, pooled)
    transformer = transformer_of((widths,), text_projection=text_projection)
    assert call(transformer, TextFeatures((stream_of(widths, 3),))).isfinite().all()
    names = set(transformer.state_dict())
    assert ("pooled_projection.weight" in names) == bool(pooled)
    assert ("text_projections.0.norm.weight" in names) == text_projection
    expected = WIDTH if text_projection else 6
    assert transformer.state_dict()["blocks.0.cross_attention.key_value.weight"].shape[1] == expected


def test_projections_are_built_on_meta_and_their_norms_begin_at_one() -> None:
    with torch.device("meta"):
        transformer = DiffusionTransformer(
            ModelConfig(channels=4, patch_size=2, depth=1, width=WIDTH, heads=2, text_projection=True),
            MoEConfig(num_experts=0),
            latent_size=8,
            output_channels=4,
            text_streams=WIDTHS,
            groups=alone(),
        )
    transformer.to_empty(device="cpu")
    for parameter in transformer.parameters():
        parameter.data.fill_(float("nan"))
    initialize_transformer(transformer, 0)
    state = transformer.state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    assert all((state[f"text_projections.{number}.norm.weight"] == 1).all() for number in range(3))


def test_class_mode_reads_no_text_to_project() -> None:
    with pytest.raises(ValueError, match=r"model\.text_projection is True; expected false"):
        ModelConfig(conditioning="class", num_classes=3, text_projection=True)
