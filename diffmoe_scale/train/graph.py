"""Forward and backward of the network as CUDA graphs: a launch each, instead of hundreds.

Recorded at the first batch of each shape by torch.cuda.make_graphed_callables, which gives parameters their
gradients as autograd would: optimizer and accumulation see no difference. The network draws no random numbers
(noise and time come from the seed and the sample), so a graph repeats nothing that should differ.
"""

import logging
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any  # the network's arguments and answers are trees of tensors

import torch
import torch.distributed as dist
from torch import Tensor, nn

from diffmoe_scale.config.schema import Config
from diffmoe_scale.model.condition import Condition
from diffmoe_scale.model.denoiser import Denoiser
from diffmoe_scale.model.transformer import Prediction
from diffmoe_scale.moe.routing import Selection

logger = logging.getLogger(__name__)
Recorder = Callable[[nn.Module, tuple[Tensor, ...]], Callable[..., tuple[Tensor, ...]]]
"""Makes a module's forward one that replays a graph, on sample arguments."""


def refuse_graph(config: Config, device: torch.device) -> None:
    """Raises ValueError where a graph cannot be the whole micro-step."""
    if device.type != "cuda":
        raise ValueError("run.cuda_graph is true but there is no CUDA device; set it to false")
    moe = config.moe
    reasons: dict[str, str | bool] = {
        "run.compile": config.run.compile and "it is not tried together",
        "parallel.expert_parallel": config.parallel.expert_parallel > 1 and "only 1 is tried",
        "model.activation_checkpointing": config.model.activation_checkpointing != "none"
        and "it reads the state of the random generator",
    }
    if moe.num_experts > 0:
        reasons |= {
            "moe.pool": moe.pool not in ("rank", "sample") and "an expert's rows must be known before",
            "moe.router": moe.router not in ("diffmoe", "expert_choice")
            and "an expert's rows must be known before",
            "moe.predictor_tokens": moe.predictor_tokens != 1 and "its tokens change in every step",
            "moe.capacity_steps": moe.capacity_steps > 0 and "an expert's rows change in every step",
            "model.precision": moe.backend == "grouped"
            and config.model.precision == "fp32"
            and "torch's grouped GEMM waits for the device in fp32",
        }
    for name, reason in reasons.items():
        if reason:
            raise ValueError(
                f"run.cuda_graph is true but {name} does not allow it: {reason}; set it to false"
            )


class GraphedForward:
    """In place of a Denoiser's forward: training passes are replayed, all others computed."""

    def __init__(self, denoiser: Denoiser, *, record: Recorder) -> None:
        self.denoiser, self.record = denoiser, record
        self.compute = denoiser.forward
        self.graphs: dict[object, tuple[Callable[..., tuple[Tensor, ...]], _Flat]] = {}

    def __call__(
        self,
        x_BCHW: Tensor,
        time_B: Tensor,
        condition: Condition,
        selection: Selection,
        sequence_group: dist.ProcessGroup | None = None,
    ) -> Prediction:
        assert sequence_group is None, "refused with run.cuda_graph"
        is_replayed = selection.rule == "train" and not selection.is_observed and torch.is_grad_enabled()
        if not is_replayed:
            return self.compute(x_BCHW, time_B, condition, selection)
        tensors: list[Tensor] = []
        tree = take_apart((x_BCHW, time_B, condition), tensors)
        key = (self.denoiser.training, repr(tree), *((tensor.shape, tensor.dtype) for tensor in tensors))
        if key not in self.graphs:
            flat = _Flat(self.denoiser, self.compute, tree, replace(selection, step=None))
            logger.info("run.cuda_graph: recording graph %d", len(self.graphs) + 1)
            self.graphs[key] = self.record(flat, tuple(tensor.clone() for tensor in tensors)), flat
        replay, flat = self.graphs[key]
        # The next replay writes to the same memory.
        answers = iter([answer.clone() for answer in replay(*tensors)])
        prediction: Prediction = put_together(flat.answer_tree, answers)
        return prediction


class _Flat(nn.Module):
    """The network as a function from tensors to tensors."""

    def __init__(
        self, denoiser: Denoiser, compute: Callable[..., Prediction], tree: Any, selection: Selection
    ) -> None:
        super().__init__()
        self.denoiser, self.compute, self.tree, self.selection = denoiser, compute, tree, selection
        self.answer_tree: Any = None

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        arguments = put_together(self.tree, iter(tensors))
        answers: list[Tensor] = []
        self.answer_tree = take_apart(self.compute(*arguments, self.selection), answers)
        return tuple(answers)


class _Place:
    """Where a tensor was."""

    def __repr__(self) -> str:
        return "tensor"


def take_apart(tree: Any, tensors: list[Tensor]) -> Any:
    """The tree with places for its tensors, which are put into `tensors`. Of dataclasses, tuples, lists,
    dicts and what has no tensors."""
    if isinstance(tree, Tensor):
        tensors.append(tree)
        return _Place()
    if is_dataclass(tree) and not isinstance(tree, type):
        return replace(
            tree, **{field.name: take_apart(getattr(tree, field.name), tensors) for field in fields(tree)}
        )
    if isinstance(tree, dict):
        return {key: take_apart(value, tensors) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)(take_apart(value, tensors) for value in tree)
    return tree


def put_together(tree: Any, tensors: Any) -> Any:
    """What `take_apart` took apart, with the next of `tensors` in each place."""
    if isinstance(tree, _Place):
        return next(tensors)
    if is_dataclass(tree) and not isinstance(tree, type):
        return replace(
            tree, **{field.name: put_together(getattr(tree, field.name), tensors) for field in fields(tree)}
        )
    if isinstance(tree, dict):
        return {key: put_together(value, tensors) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)(put_together(value, tensors) for value in tree)
    return tree


def record_on_gpu(module: nn.Module, tensors: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]]:
    """torch's recorder. A parameter that nothing reads has no gradient."""
    # Declared for modules and for functions; it answers a module here.
    make: Any = torch.cuda.make_graphed_callables
    recorded: Callable[..., tuple[Tensor, ...]] = make(module, tensors, allow_unused_input=True)
    return recorded
