"""What the forward and backward pass of a micro-batch keep in memory, on one rank: the network runs on
`meta`, with a block of each kind, and every tensor that it makes is counted.

The backward pass is recorded gradient by gradient, because the engine reduces and frees each as it comes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any  # what modules are given and answer

import torch
from torch import Tensor, nn

from diffmoe_scale.config.schema import Config
from diffmoe_scale.diffusion.objective import build_objective
from diffmoe_scale.model.condition import Condition
from diffmoe_scale.model.denoiser import Denoiser
from diffmoe_scale.model.transformer import Prediction
from diffmoe_scale.moe.grouped_linear import LoopLinear
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.nn.embeddings import position_embedding_on
from diffmoe_scale.nn.number_formats import NUMBER_FORMATS
from diffmoe_scale.nn.rope import rotation_2d_on
from diffmoe_scale.plan.build import META, build_denoiser, even_routing, keep_distinct_blocks, step_inputs
from diffmoe_scale.plan.fake_ranks import expert_groups
from diffmoe_scale.plan.parameter_list import Parameter, list_parameters
from diffmoe_scale.plan.stand_ins import fused_kernels
from diffmoe_scale.plan.storages import StorageTracker


@dataclass(frozen=True)
class Gradient:
    """The moment at which a parameter's gradient is complete. Bytes count from the beginning of the part and
    hold this gradient, but none that came before; `peak` is the most since the moment before. `freed` go with
    the gradient: those of a layer's experts lie in one storage, which goes with the last."""

    name: str
    level: int
    peak: int
    freed: int


@dataclass
class Part:
    """A stretch of a pass, in bytes against its beginning: `end` stays, `peak` is the most since the last
    gradient, or since the beginning."""

    end: int = 0
    peak: int = 0
    traffic: int = 0
    """Bytes that operations read and write, matrix products left out."""
    launches: int = 0
    gradients: list[Gradient] = field(default_factory=list)


@dataclass
class Trace:
    """Forward and backward of a micro-batch: before the blocks, a block of each kind, and behind them."""

    order: list[int]
    """The kind of each block of the whole network."""
    forward: dict[str, Part] = field(default_factory=dict)
    """By "before", "0", "1", ... (the kinds) and "after"."""
    backward: dict[str, Part] = field(default_factory=dict)
    """The same, in which "after" comes first."""
    parameters: list[Parameter] = field(default_factory=list)
    """Of the whole network, on this rank, in its order."""

    @property
    def traffic(self) -> int:
        """Bytes that the operations of both passes read and write, matrix products left out."""
        return sum(part.traffic for passes in (self.forward, self.backward) for part in self.whole(passes))

    @property
    def launches(self) -> int:
        """Operations of both passes."""
        return sum(part.launches for passes in (self.forward, self.backward) for part in self.whole(passes))

    def whole(self, parts: dict[str, Part]) -> list[Part]:
        """The parts of a pass over the whole network: before its blocks, each block, behind them."""
        return [parts["before"], *(parts[str(kind)] for kind in self.order), parts["after"]]


def trace_step(config: Config, *, num_samples: int, expert_parallel: int = 1) -> Trace:
    """Memory of a rank over a micro-batch of `num_samples`. Experts take equally many tokens.

    Raises: ValueError if fewer tokens than experts compete, or files of frozen networks are missing.
    """
    forget_positions()
    with expert_groups(expert_parallel) as groups:
        network = build_denoiser(even_routing(config), groups)
        parameters = list_parameters(network)
        trace = Trace(keep_distinct_blocks(network), parameters=parameters)
        cast_parameters(network, NUMBER_FORMATS[config.model.precision])
        recorder = _Recorder(network, trace)
        with fused_kernels(), recorder.tracker, recorder.hooks():
            recorder.open("before", trace.forward)
            loss = _loss(network, config, step_inputs(config, num_samples))
            recorder.open("after", trace.backward)
            loss[0].backward()  # type: ignore[no-untyped-call]  # torch declares no type
            recorder.close()
    forget_positions()
    return trace


def forget_positions() -> None:
    """Drop the remembered embeddings of places: those made earlier would not be counted."""
    position_embedding_on.cache_clear()
    rotation_2d_on.cache_clear()


def cast_parameters(network: Denoiser, dtype: torch.dtype) -> None:
    """Give a network on `meta` its format, and the experts of a layer one storage, as DeepSpeed does."""
    network.to(dtype)
    for module in network.modules():
        if isinstance(module, LoopLinear):
            for tensors in filter(None, module.expert_tensors()):
                storage = torch.empty(len(tensors), *tensors[0].shape, dtype=dtype, device=META)
                for tensor, place in zip(tensors, storage, strict=True):
                    tensor.data = place


def _loss(
    network: Denoiser, config: Config, inputs: tuple[Tensor, Tensor, Condition]
) -> tuple[Tensor, Prediction]:
    """The tensors that `train.loss.denoising_loss` makes, and what training holds on to."""
    objective = build_objective(config.diffusion)
    latents_BCHW, uniform_B, condition = inputs
    x0_BCHW = latents_BCHW.where(latents_BCHW.isfinite(), 0.0)
    noise_BCHW = torch.empty_like(x0_BCHW)
    t_B = objective.sample_time(uniform_B)
    x_t_BCHW = objective.add_noise(x0_BCHW, noise_BCHW, t_B)
    prediction = network(x_t_BCHW, objective.embedding_time(t_B), condition, Selection())
    total = objective.loss(prediction.value_BCHW, x_t_BCHW, x0_BCHW, noise_BCHW, t_B).mean()
    for routing in prediction.routings:
        total = total + sum(routing.aux_losses.values())
    return total, prediction


class _Recorder:
    """Cuts a pass into parts, at the borders of blocks."""

    def __init__(self, network: Denoiser, trace: Trace) -> None:
        self.network, self.trace = network, trace
        self.tracker = StorageTracker(META)
        self.tracker.add_module(network)
        self._part, self._base = Part(), self.tracker.current
        self._counted = 0, 0
        self._is_forward = True

    def open(self, name: str, parts: dict[str, Part]) -> None:
        """Close the part at work, and begin another."""
        self.close()
        self._is_forward = parts is self.trace.forward
        self._part = parts.setdefault(name, Part())
        self._base = self.tracker.current
        self.tracker.reset_peak()

    def close(self) -> None:
        self._part.end = self.tracker.current - self._base
        self._part.peak = self.tracker.peak - self._base
        traffic, launches = self._counted
        self._part.traffic += self.tracker.traffic - traffic
        self._part.launches += self.tracker.launches - launches
        self._counted = self.tracker.traffic, self.tracker.launches

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Watch the network's blocks and parameters inside."""
        handles = [
            parameter.register_post_accumulate_grad_hook(self._gradient_hook(name))
            for name, parameter in self.network.named_parameters()
        ]
        blocks = self.network.transformer.blocks
        for index, block in enumerate(blocks):
            handles.append(block.register_forward_pre_hook(self._before_block(index)))
            if index == len(blocks) - 1:
                handles.append(block.register_forward_hook(self._after_last_block(index)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _gradient_hook(self, name: str) -> Callable[[Tensor], None]:
        def note(parameter: Tensor) -> None:
            level, peak = (number - self._base for number in (self.tracker.current, self.tracker.peak))
            parameter.grad = None
            freed = level + self._base - self.tracker.current
            self._part.gradients.append(Gradient(name, level, peak, freed))
            self.tracker.reset_peak()

        return note

    def _before_block(self, index: int) -> Callable[[nn.Module, Any], None]:
        def note(_: nn.Module, arguments: Any) -> None:
            if self._is_forward:  # activation checkpointing calls a block again in the backward pass
                self.open(str(index), self.trace.forward)
                name = "before" if index == 0 else str(index - 1)
                self._open_backward(name, arguments)

        return note

    def _after_last_block(self, index: int) -> Callable[[nn.Module, Any, Any], None]:
        def note(_: nn.Module, arguments: Any, answer: Any) -> None:
            if self._is_forward:
                self.open("after", self.trace.forward)
                self._open_backward(str(index), answer)

        return note

    def _open_backward(self, name: str, tensors: Any) -> None:
        """Begin a part of the backward pass when the first gradient of `tensors` comes: of image or text
        tokens between two blocks. (With cross-attention all blocks share the text: its gradient is last.)"""

        def note(_: Tensor) -> None:
            if name not in self.trace.backward:
                self.open(name, self.trace.backward)

        for tensor in tensors:
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(note)
