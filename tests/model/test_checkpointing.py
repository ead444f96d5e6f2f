"""What is recomputed in the backward pass changes no gradient."""

from typing import Literal

import numpy as np
import pytest
import torch

from diffmoe_scale.nn.generator import named_generator
from diffmoe_scale.parallel.context import ParallelContext
from tests.model.models import VARIANTS, call, disturbed_text_transformer, make_transformer, text_features
from tests.ranks import run_on_ranks

PATHS = {
    "attention": "blocks.1.attention",
    "feed_forward": "blocks.1.feed_forward",
    "dense": "blocks.2.feed_forward",
}


# What each setting computes twice in a block with experts: attention, the MoE layer.
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("setting, passes", [("none", (1, 1)), ("blocks", (2, 2)), ("experts", (1, 2))])
def test_activation_checkpointing_recomputes_what_it_names_and_changes_no_gradient(
    setting: Literal["none", "blocks", "experts"], passes: tuple[int, int], variant: str
) -> None:
    answers = []
    chosen: Literal["none", "blocks", "experts"]
    for chosen in ("none", setting):
        transformer = disturbed_text_transformer(activation_checkpointing=chosen, model=VARIANTS[variant])
        text = text_features()
        tokens_BLT = text.tokens_BLT.requires_grad_()
        counts = dict.fromkeys(PATHS, 0)

        for name, path in PATHS.items():

            def count(*_: object, name: str = name, counts: dict[str, int] = counts) -> None:
                counts[name] += 1

            transformer.get_submodule(path).register_forward_pre_hook(count)
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
        answers.append([np.asarray(parameter.grad) for parameter in transformer.parameters()])
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
