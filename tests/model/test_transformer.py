"""The whole network: against the reference implementation's numbers, and what text, batches and recomputation
must not change."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffmoe_scale.config.diffusion import DiffusionConfig
from diffmoe_scale.diffusion.objective import build_objective
from diffmoe_scale.encoders.text.features import TextFeatures
from diffmoe_scale.model.condition import Condition
from diffmoe_scale.model.transformer import DiffusionTransformer, Prediction
from diffmoe_scale.moe.layer import MoELayer
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.moe.thresholds import update_thresholds
from diffmoe_scale.nn.embeddings import SizeEmbedding
from diffmoe_scale.nn.generator import named_generator
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.sampling.euler import euler
from diffmoe_scale.sampling.guidance import guide
from diffmoe_scale.sampling.schedule import sampling_times
from tests.model.models import (
    CHANNELS,
    EXPERTS,
    REFERENCE,
    SIZE,
    TEXT_WIDTH,
    WIDTH,
    assert_near,
    canonical_parameters,
    disturb,
    make_transformer,
    reference_name,
    reference_transformer,
)
from tests.ranks import run_on_ranks

BACKENDS = ("loop", "grouped")
NULL_CLASS = 10
# The reference's after its first training pass. Those in the file are views of a buffer that later passes
# changed; these are from the same code, run anew on the same input (its output is the file's, bit for bit).
THRESHOLDS_AFTER = {
    1: [0.015535716, 0.037075244, 0.034989797, 0.035467733],
    3: [0.024916572, 0.028182201, 0.032399915, 0.031578835],
}


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return dict(np.load(REFERENCE))


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array)


def reference_losses(prediction: Prediction, arrays: dict[str, np.ndarray]) -> tuple[Tensor, Tensor]:
    """The reference's: its velocity is data - noise, and the predictors' losses are summed over layers."""
    velocity_BCHW = tensor(arrays["x_data"]) - tensor(arrays["noise"])
    mse = (prediction.value_BCHW[:, :CHANNELS] - velocity_BCHW).square().mean()
    return mse, torch.stack([routing.aux_losses["predictor"] for routing in prediction.routings]).sum()


def reference_training_pass(transformer: DiffusionTransformer, arrays: dict[str, np.ndarray]) -> Prediction:
    z_BCHW, t_B, labels_B = (tensor(arrays[name]) for name in ("z_t", "t_reference", "class"))
    return transformer(
        z_BCHW,
        t_B,
        Condition(labels_B),
        Selection("train"),
    )


def with_thresholds(transformer: DiffusionTransformer, value: float) -> DiffusionTransformer:
    for layer in transformer.moe_layers():
        layer.router.predictor.expert_threshold_E.fill_(value)
    return transformer


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_pass_equals_the_reference(arrays: dict[str, np.ndarray], backend: str) -> None:
    transformer = reference_transformer(arrays, backend=backend)
    prediction = reference_training_pass(transformer, arrays)
    assert_near(prediction.value_BCHW, arrays["train/output"], "output")
    for loss, name in zip(
        reference_losses(prediction, arrays), ("train/mse", "train/predictor_loss_sum"), strict=True
    ):
        assert_near(loss, arrays[name], name)
    update_thresholds(
        transformer.moe_layers(),
        torch.stack([routing.kth_probability_E for routing in prediction.routings]),
        None,
    )
    for block, layer in zip((1, 3), transformer.moe_layers(), strict=True):
        assert_near(
            layer.router.predictor.threshold(),
            torch.tensor(THRESHOLDS_AFTER[block]),
            f"thresholds of block {block}",
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_gradients_equal_the_reference(arrays: dict[str, np.ndarray], backend: str) -> None:
    transformer = reference_transformer(arrays, backend=backend)
    sum(reference_losses(reference_training_pass(transformer, arrays), arrays)).backward()
    parameters = canonical_parameters(transformer)
    assert {f"train/grad/{reference_name(name)}" for name in parameters} == {
        name for name in arrays if name.startswith("train/grad/")
    }
    for name, parameter in parameters.items():
        assert parameter.grad is not None
        assert_near(
            parameter.grad, arrays[f"train/grad/{reference_name(name)}"].reshape(parameter.shape), name
        )


def test_inference_by_count_equals_the_reference(arrays: dict[str, np.ndarray]) -> None:
    transformer = with_thresholds(reference_transformer(arrays), float(arrays["eval/threshold"]))
    z_BCHW, t_B, labels_B = (tensor(arrays[name]) for name in ("z_t", "t_reference", "class"))
    with torch.no_grad():
        prediction = transformer(
            z_BCHW,
            t_B,
            Condition(labels_B),
            Selection("threshold_count"),
        )
    assert_near(prediction.value_BCHW, arrays["eval/output"])


@pytest.mark.parametrize("guidance", [1, 2])
def test_ten_euler_steps_equal_the_reference(arrays: dict[str, np.ndarray], guidance: int) -> None:
    transformer = with_thresholds(reference_transformer(arrays), float(arrays["eval/threshold"]))
    labels_B = tensor(arrays["sample/class"])

    def velocity(x_BCHW: Tensor, t_B: Tensor, labels_B: Tensor) -> Tensor:
        # The reference's clock and velocity run the other way.
        prediction = transformer(x_BCHW, 1 - t_B, Condition(labels_B), Selection("threshold_count"))
        return -prediction.value_BCHW[:, :CHANNELS]

    def predict(x_BCHW: Tensor, t_B: Tensor) -> Tensor:
        conditional = velocity(x_BCHW, t_B, labels_B)
        return (
            conditional
            if guidance == 1
            else guide(conditional, velocity(x_BCHW, t_B, torch.full_like(labels_B, NULL_CLASS)), guidance)
        )

    with torch.no_grad():
        x0_BCHW = euler(
            predict,
            build_objective(DiffusionConfig()),
            tensor(arrays["sample/z"]),
            sampling_times(10, end=0.0),
        )
    assert_near(x0_BCHW, arrays[f"sample/euler10_cfg{guidance}"])


def text_features(*, num_samples: int = 3, length: int = 5, seed: int = 0) -> TextFeatures:
    """Captions of different length: sample b has b + 2 valid tokens."""
    generator = torch.Generator().manual_seed(seed)
    mask_BL = torch.arange(length) < torch.arange(num_samples)[:, None] + 2
    return TextFeatures(
        torch.randn(num_samples, length, TEXT_WIDTH, generator=generator),
        mask_BL,
        torch.randn(num_samples, TEXT_WIDTH, generator=generator),
    )


def call(
    transformer: DiffusionTransformer,
    text: TextFeatures,
    rule: str = "train",
    *,
    rows: slice = slice(None),
    x_BCHW: Tensor | None = None,
) -> Prediction:
    generator = torch.Generator().manual_seed(1)
    noisy_BCHW, time_B = (
        torch.randn(3, CHANNELS, SIZE, SIZE, generator=generator),
        torch.rand(3, generator=generator),
    )
    picked = TextFeatures(text.tokens_BLT[rows], text.mask_BL[rows], text.pooled_BV[rows])
    x_BCHW = noisy_BCHW if x_BCHW is None else x_BCHW
    return transformer(x_BCHW[rows], time_B[rows], Condition(text=picked), Selection(rule))


def disturbed_text_transformer(**settings: object) -> DiffusionTransformer:
    transformer = make_transformer("text", router_init_std=0.5, **settings)
    disturb(transformer)
    return with_thresholds(transformer, 0.5)


def test_output_is_zero_at_initialisation() -> None:
    assert call(make_transformer("text"), text_features()).value_BCHW.abs().max() == 0


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


def test_a_dense_model_has_no_routing() -> None:
    transformer = make_transformer("text", num_experts=0)
    assert transformer.moe_layers() == [] and call(transformer, text_features()).routings == []


def test_cross_attention_sees_only_valid_tokens() -> None:
    transformer, text = disturbed_text_transformer(), text_features()
    expected_BCHW = call(transformer, text).value_BCHW
    garbage_BLT = text.tokens_BLT.where(text.mask_BL[:, :, None], 100.0)
    assert torch.equal(call(transformer, replace(text, tokens_BLT=garbage_BLT)).value_BCHW, expected_BCHW)
    padded = TextFeatures(
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


@pytest.mark.parametrize("rule", ["threshold", "interval"])
def test_a_samples_output_by_the_predictor_does_not_depend_on_its_batch(rule: str) -> None:
    transformer, text = disturbed_text_transformer(), text_features()
    with torch.no_grad():
        together_BCHW = call(transformer, text, rule).value_BCHW
        alone_BCHW = torch.cat(
            [call(transformer, text, rule, rows=slice(i, i + 1)).value_BCHW for i in range(3)]
        )
    # The same arithmetic over other numbers of rows.
    torch.testing.assert_close(together_BCHW, alone_BCHW, rtol=1e-5, atol=1e-5)


# What each setting computes twice in a block with experts: attention, the MoE layer.
@pytest.mark.parametrize("setting, passes", [("none", (1, 1)), ("blocks", (2, 2)), ("experts", (1, 2))])
def test_activation_checkpointing_recomputes_what_it_names_and_changes_no_gradient(
    setting: str, passes: tuple[int, int]
) -> None:
    answers = []
    for chosen in ("none", setting):
        transformer, text = disturbed_text_transformer(activation_checkpointing=chosen), text_features()
        tokens_BLT = text.tokens_BLT.requires_grad_()
        counts = {"attention": 0, "feed_forward": 0, "dense": 0}

        def count(name: str, counts: dict[str, int] = counts) -> object:
            def hook(*_: object) -> None:
                counts[name] += 1

            return hook

        transformer.blocks[1].attention.register_forward_pre_hook(count("attention"))
        transformer.blocks[1].feed_forward.register_forward_pre_hook(count("feed_forward"))
        transformer.blocks[2].feed_forward.register_forward_pre_hook(count("dense"))
        prediction = call(transformer, text)
        loss = prediction.value_BCHW.square().mean() + sum(
            routing.aux_losses["predictor"] for routing in prediction.routings
        )
        loss.backward()
        answers.append(
            [loss.detach(), tokens_BLT.grad, *(parameter.grad for parameter in transformer.parameters())]
        )
    assert (counts["attention"], counts["feed_forward"]) == passes and counts["dense"] == counts[
        "feed_forward"
    ]
    assert all(gradient is not None for gradient in answers[0])
    # The same kernels on the same numbers.
    assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))


def gradients_on_rank(parallel: ParallelContext) -> list[list[np.ndarray]]:
    answers = []
    for setting in ("none", "blocks", "experts"):
        settings = {
            "router_init_std": 0.5,
            "activation_checkpointing": setting,
            "groups": parallel.megatron_groups,
            "pool": "data_parallel",
        }
        transformer = make_transformer("text", **settings)
        for name, parameter in transformer.named_parameters():
            # Seeded by name: ranks hold different experts and must agree on all else.
            torch.nn.init.normal_(parameter, std=0.1, generator=named_generator(0, name))
        prediction = call(transformer, text_features(seed=parallel.rank))
        (
            prediction.value_BCHW.square().mean()
            + sum(routing.aux_losses["predictor"] for routing in prediction.routings)
        ).backward()
        answers.append([parameter.grad.numpy() for parameter in transformer.parameters()])
    return answers


def test_recomputed_experts_meet_the_other_ranks_again() -> None:
    for answers in run_on_ranks(gradients_on_rank, 2, expert_parallel=2):
        assert all(
            np.array_equal(gradient, expected)
            for recomputed in answers[1:]
            for gradient, expected in zip(recomputed, answers[0], strict=True)
        )
        assert all(np.abs(gradient).max() > 0 for gradient in answers[0])


def test_nothing_is_recomputed_without_gradients() -> None:
    transformer = disturbed_text_transformer(activation_checkpointing="experts")
    with torch.no_grad():
        assert not call(transformer, text_features()).value_BCHW.requires_grad


def test_bf16_takes_fp32_features_of_a_frozen_text_encoder() -> None:
    transformer, text = disturbed_text_transformer(), text_features()
    expected_BCHW = call(transformer, text, "static").value_BCHW
    got = call(transformer.bfloat16(), text, "static")
    assert (
        got.value_BCHW.dtype == torch.float32
        and transformer.blocks[0].cross_attention.query.weight.dtype == torch.bfloat16
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


@pytest.mark.parametrize("shape", [(4, 12), (12, 4), (16, 16)])
def test_other_shapes_keep_their_height_and_width(shape: tuple[int, int]) -> None:
    transformer = make_transformer("class")
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


def test_size_conditions_start_without_effect_and_then_have_one() -> None:
    embedding = SizeEmbedding(6, WIDTH)
    nn.init.zeros_(embedding.output.weight)
    nn.init.zeros_(embedding.output.bias)
    sizes_BZ = torch.tensor([[64.0, 48, 0, 3, 32, 24], [64, 48, 3, 0, 32, 24]])
    assert (embedding(sizes_BZ) == 0).all()
    disturb(embedding)
    assert not torch.allclose(*embedding(sizes_BZ))
