"""How many operations a training pass of the layer gives the device: not more for more experts."""

from collections import Counter
from collections.abc import Callable
from typing import Any  # torch's operations and their arguments

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.moe.layers import context, make_layer

# Views, memory that nothing is written to, and numbers that stay on the CPU.
FREE = frozenset(
    ["view", "_unsafe_view", "t", "transpose", "as_strided", "detach", "expand", "unsqueeze", "squeeze"]
    + ["slice", "select", "split", "split_with_sizes", "unbind", "alias", "scalar_tensor"]
    + ["empty", "new_empty", "empty_like", "empty_strided"]
)
# Of torch's own operations, and with the fused ones, each one Triton kernel on CUDA; forward and backward. In
# bf16 there are casts around what is fp32. A number read from the device stands for the assertion that a GPU
# has in its place.
MOST = {
    ("off", torch.float32): (37, 29),
    ("off", torch.bfloat16): (41, 34),
    ("on", torch.float32): (29, 23),
    ("on", torch.bfloat16): (33, 27),
}


class Counting(TorchDispatchMode):
    """Counts what is called inside by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.names[str(function).split(".")[1]] += 1
        return function(*args, **(kwargs or {}))

    @property
    def kernels(self) -> int:
        return sum(count for name, count in self.names.items() if name not in FREE)


def count(num_experts: int, dtype: torch.dtype, **settings: Any) -> tuple[int, int]:
    layer = make_layer(num_experts=num_experts, width=16, **settings).to(dtype)
    x_SD = torch.randn(512, 16).to(dtype).requires_grad_()
    grad_SD, one, given = torch.randn(512, 16).to(dtype), torch.ones(()), context(num_samples=2)
    with Counting() as forward:
        y_SD, routing = layer(x_SD, given)
    with Counting() as backward:
        torch.autograd.backward([y_SD, routing.aux_losses["predictor"]], [grad_SD, one])
    return forward.kernels, backward.kernels


@pytest.mark.parametrize(("fused", "dtype"), MOST)
def test_the_number_of_kernels_does_not_grow_with_the_experts(fused: str, dtype: torch.dtype) -> None:
    few = count(4, dtype, fused=fused)
    assert few == count(128, dtype, fused=fused)
    assert few <= MOST[fused, dtype], few


def test_a_training_pass_is_at_most_60_kernels() -> None:
    assert max(sum(most) for (fused, _), most in MOST.items() if fused == "on") <= 60
