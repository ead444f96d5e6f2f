"""Operations of a training step, counted on the network itself: it is run on `meta`, and every matrix product
and attention that it calls is counted, whatever its blocks are made of.

A multiplication and an addition are two operations. Elementwise work, norms and softmax are left out, as is
usual for MFU. Backward counts the gradients that are taken: of weights, and of inputs that need one.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any  # arguments of torch's functions

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diffmoe_scale.config.schema import Config
from diffmoe_scale.model.denoiser import Denoiser
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.nn.number_formats import NUMBER_FORMATS
from diffmoe_scale.plan.build import (
    build_denoiser,
    even_routing,
    keep_distinct_blocks,
    plain_experts,
    step_inputs,
)
from diffmoe_scale.plan.parts import part_of

PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, torch.bmm, Tensor.bmm)
BLOCKS = "transformer.blocks."
FEED_FORWARD = (
    "experts",
    "shared experts",
    "capacity predictors",
    "target heads",
    "routers",
    "dense feed-forward",
    "text feed-forward",
)
"""Parts that activation checkpointing of `experts` computes twice."""


@dataclass(frozen=True)
class Product:
    """A matrix product or attention of a part: `rows` x `inner` with `inner` x `outer`."""

    part: str
    rows: int
    inner: int
    outer: int
    is_bf16: bool
    is_attention: bool
    is_in_block: bool


@dataclass(frozen=True)
class Flops:
    """Operations of one training sample by part (`parts.PARTS`)."""

    forward: dict[str, float]
    backward: dict[str, float]
    recomputed: float
    """Forward operations that activation checkpointing repeats in the backward pass."""
    products: dict[Product, tuple[int, int]]
    """Operations of a whole micro-batch by product, forward and backward."""

    @property
    def model(self) -> float:
        """Of forward and backward, without what is repeated: what MFU counts."""
        return sum(self.forward.values()) + sum(self.backward.values())


def count_flops(config: Config, *, num_samples: int | None = None) -> Flops:
    """Operations of a training sample, the mean over a micro-batch of `num_samples` (by default the run's).

    Experts take their share of the tokens at `moe.capacity` (or `moe.top_k`), captions have their full
    length, images `model.image_size`. Raises: as `build.build_denoiser`.
    """
    count = num_samples or config.run.micro_batch
    network = build_denoiser(even_routing(plain_experts(config)))
    numbers = Counter(keep_distinct_blocks(network))
    network.to(NUMBER_FORMATS[config.model.precision])
    with FlopCounter(numbers) as counter, counter.parts_of(network):
        network(*step_inputs(config, count), Selection())
    forward: Counter[str] = Counter()
    backward: Counter[str] = Counter()
    for product, (ahead, back) in counter.products.items():
        forward[product.part] += ahead
        backward[product.part] += back
    repeated = sum(
        ahead
        for product, (ahead, _) in counter.products.items()
        if is_repeated(product, config.model.activation_checkpointing)
    )
    return Flops(
        forward={part: number / count for part, number in forward.items()},
        backward={part: number / count for part, number in backward.items()},
        recomputed=repeated / count,
        products=dict(counter.products),
    )


def is_repeated(product: Product, checkpointing: str) -> bool:
    """Whether activation checkpointing computes it again in the backward pass."""
    match checkpointing:
        case "blocks":
            return product.is_in_block
        case "experts":
            return product.part in FEED_FORWARD
    return False


class FlopCounter(TorchFunctionMode):
    """Counts matrix products and attention of what is called inside, by the part that calls it.

    A block stands for `numbers` of its kind.
    """

    def __init__(self, numbers: Mapping[int, int]) -> None:
        super().__init__()
        self._numbers = {f"{BLOCKS}{index}": number for index, number in numbers.items()}
        self.products: dict[Product, tuple[int, int]] = {}
        self._modules: list[str] = []

    @contextmanager
    def parts_of(self, network: Denoiser) -> Iterator[None]:
        """Know inside which module of `network` is at work."""
        handles = []
        for name, module in network.named_modules():
            handles.append(module.register_forward_pre_hook(self._enter(name)))
            handles.append(module.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, arguments: self._modules.append(name)

    def _leave(self, module: nn.Module, arguments: Any, answer: Any) -> None:
        self._modules.pop()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.__bool__ and args[0].is_meta:
            return True  # routers ask whether their scores are finite
        answer = func(*args, **kwargs)
        if torch.is_tensor(answer) and (cost := product_cost(func, args, kwargs, answer)):
            name = self._modules[-1] if self._modules else ""
            block = BLOCKS + name.removeprefix(BLOCKS).split(".")[0] if name.startswith(BLOCKS) else ""
            inner, outer = args[0 if func is not torch.einsum else 1].shape[-1], answer.shape[-1]
            product = Product(
                part=part_of(name),
                rows=answer.numel() // outer,
                inner=inner,
                outer=outer,
                is_bf16=answer.dtype == torch.bfloat16,
                is_attention=func is F.scaled_dot_product_attention,
                is_in_block=bool(block),
            )
            number = self._numbers.get(block, 1)
            forward, backward = self.products.get(product, (0, 0))
            self.products[product] = forward + number * cost[0], backward + number * cost[1]
        return answer


def product_cost(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], answer: Tensor
) -> tuple[int, int] | None:
    """Operations of a call forward and backward; None for a function that is no product."""
    if func is F.scaled_dot_product_attention:
        query, key, value = args[:3]
        # Scores and their products with the values; each has two gradients of the same cost.
        keys = key.shape[-2]
        forward = 2 * query.numel() * keys + 2 * query.numel() // query.shape[-1] * keys * value.shape[-1]
        return forward, 2 * forward if answer.requires_grad else 0
    if func is F.linear:
        left, right = args[0], args[1] if len(args) > 1 else kwargs["weight"]
        forward = 2 * left.numel() * right.shape[0]
    elif func in PRODUCTS:
        left, right = args[:2]
        forward = 2 * answer.numel() * left.shape[-1]
    elif func is torch.einsum:
        left, right = args[1:3]
        sizes = {
            letter: size
            for term, operand in zip(args[0].split("->")[0].split(","), args[1:], strict=True)
            for letter, size in zip(term.strip(), operand.shape, strict=True)
        }
        forward = 2
        for size in sizes.values():
            forward *= size
    else:
        return None
    return forward, forward * (int(left.requires_grad) + int(right.requires_grad))
