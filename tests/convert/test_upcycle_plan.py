"""Plans of other experts: the factor of their outputs, and what is refused."""

import pytest

from diffmoe_scale.config.load import load_config
from diffmoe_scale.config.schema import Config
from diffmoe_scale.convert.upcycle_plan import plan_experts

TOKEN_CHOICE = ["moe.router=token_choice", "sampling.selection=static"]


def config_of(experts: int, *settings: str) -> Config:
    return load_config(
        None, ["model.conditioning=class", "model.num_classes=5", f"moe.num_experts={experts}", *settings]
    )


def test_noise_needs_experts_that_are_copied() -> None:
    with pytest.raises(ValueError, match=r"--noise is 0\.1; expected 0: no expert is copied"):
        plan_experts(config_of(8), config_of(4), noise=0.1)
    with pytest.raises(ValueError, match=r"--noise is 0\.1; expected 0: no expert is made anew"):
        plan_experts(config_of(4), config_of(4), noise=0.1)


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    ("before", "after", "is_equal"),
    [
        ((4, 1), (8, 1), True),  # the nearest of the copies
        ((4, 2), (8, 2), False),  # perhaps both copies of one, and none of the other
        ((4, 2), (8, 4), True),
        ((4, 1), (8, 4), False),
    ],
)
def test_more_experts_of_token_choice(
    before: tuple[int, int], after: tuple[int, int], is_equal: bool, gate: str
) -> None:
    """Gates of a softmax fall as experts grow; the sum grows with the experts that a token takes."""
    old, new = (
        config_of(experts, *TOKEN_CHOICE, f"moe.gate={gate}", f"moe.top_k={top_k}")
        for experts, top_k in (before, after)
    )
    plan = plan_experts(old, new, noise=0)
    times = after[1] / before[1]
    assert plan.kind == "repeat" and plan.scale == (2.0 if gate == "softmax" else 1.0) / times
    assert bool(plan.reasons) != is_equal
    assert plan.is_router_tiny == (before[1] == after[1] == 1)


def test_more_or_fewer_are_a_multiple_or_a_divisor() -> None:
    for before, after in ((4, 6), (6, 4)):
        with pytest.raises(ValueError, match=rf"was {before}, is {after}; expected a multiple or a divisor"):
            plan_experts(config_of(before), config_of(after), noise=0)
