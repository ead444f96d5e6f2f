"""Forward, backward and optimizer step of a rank, with the weight average."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any  # a network's arguments

import torch
from torch import Tensor

from diffmoe_scale.config.schema import Config
from diffmoe_scale.model.compilation import CompilationLog, compile_blocks
from diffmoe_scale.model.denoiser import Denoiser
from diffmoe_scale.model.transformer import Prediction
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.parallel.expert_groups import register_expert_groups
from diffmoe_scale.parallel.slice import Slice
from diffmoe_scale.plan.parts import GRADIENT_PARTS, gradient_part_of
from diffmoe_scale.train.ema import WeightAverage
from diffmoe_scale.train.graph import GraphedForward, record_on_gpu, refuse_graph
from diffmoe_scale.train.optim import build_optimizer, parameter_groups
from diffmoe_scale.train.zero import Zero
from diffmoe_scale.words import counted

PREDICTOR = GRADIENT_PARTS.index("predictor")


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step did. `gradient_norm` is global, from before clipping, and of all parameters but
    the capacity predictors'; a skipped step changed nothing."""

    learning_rate: float
    gradient_norm: float
    is_skipped: bool
    squares_P: Tensor | None = None
    """Sums of squares of the gradients that this rank owns, by `GRADIENT_PARTS`, if they were asked for."""


class Engine:
    """Forward, backward and optimizer step of a rank. Dense gradients are averaged over all ranks; an
    expert's are summed over its replicas and divided by the same number, so that one process and many take
    the same step."""

    def __init__(self, denoiser: Denoiser, config: Config, context: ParallelContext) -> None:
        """Collective over the world. Raises ValueError if the global batch does not split over the ranks."""
        self.denoiser = denoiser
        if config.run.cuda_graph:
            refuse_graph(config, context.device)
        self._compilations: CompilationLog | None = None
        if config.run.compile:
            compile_blocks(denoiser.transformer)
            self._compilations = CompilationLog()
        self.accumulation = accumulation_steps(config, ranks=context.data_ranks)
        self.step_count = 0
        """Optimizer steps that changed the weights."""
        self.before_change: Callable[[], None] = lambda: None
        """Called before anything of `state` changes: waits for those who still read it."""
        self._pending = 0
        self._sequence = () if context.sequence_group is None else (context.sequence_group,)
        self._parts = {
            parameter: GRADIENT_PARTS.index(gradient_part_of(name))
            for name, parameter in denoiser.named_parameters()
        }
        if context.expert_parallel > 1:
            register_expert_groups(context, _expert_parameters(denoiser))

        def optimizer() -> torch.optim.Optimizer:
            return build_optimizer(
                parameter_groups(denoiser, config.optimizer),
                config.optimizer,
                context,
                is_offloaded=config.parallel.offload_optimizer,
            )

        # The predictor watches the diffusion model, and through the norm it would change its steps.
        self.zero = Zero(
            denoiser,
            config,
            context,
            accumulation=self.accumulation,
            build_optimizer=optimizer,
            uncounted=[parameter for parameter, part in self._parts.items() if part == PREDICTOR],
        )
        if config.run.cuda_graph:
            # An attribute of the object hides the method; recorded later, when weights lie where they stay.
            denoiser.forward = GraphedForward(denoiser, record=record_on_gpu)  # type: ignore[method-assign]
        decays = {"ema": config.optimizer.ema_decay}
        if config.optimizer.ema2_decay:
            decays["ema2"] = config.optimizer.ema2_decay
        self.averages = {
            family: WeightAverage(self.zero.masters, decay=decay, has_warmup=config.optimizer.ema_warmup)
            for family, decay in decays.items()
        }
        """By their family in checkpoints."""

    def __call__(self, *arguments: Any) -> Prediction:
        prediction: Prediction = self.zero(*arguments, *self._sequence)
        return prediction

    def backward(self, loss: Tensor) -> None:
        """Gradients of one micro-batch's mean loss; call `accumulation` times before `step`. Collective over
        the world."""
        self.zero.backward(loss)
        self._pending += 1
        if self._pending < self.accumulation:
            self.zero.step()  # counts the micro-batch; the weights stay

    def step(self, learning_rate: float, *, is_observed: bool = False) -> StepResult:
        """Clip by the global norm, update, gather the new weights, average them. Collective over the world.

        A gradient that is not finite skips the step on all ranks. `is_observed` asks for `squares_P`, which
        reads all gradients once more.
        """
        assert self._pending == self.accumulation, (
            f"{self._pending} of {self.accumulation} micro-batches before a step"
        )
        self._pending = 0
        for group in self.zero.groups:
            group["lr"] = learning_rate * group["lr_ratio"]
        squares_P = None
        if is_observed:
            squares_P = self.zero.gradient_squares(self._parts, num_parts=len(GRADIENT_PARTS))
        self.before_change()
        self.zero.step()
        is_skipped = self.zero.is_skipped
        if not is_skipped:
            self.step_count += 1
            for average in self.averages.values():
                average.update(self.step_count)
        if self._compilations is not None:
            self._compilations.add_step(self.step_count)
        return StepResult(
            learning_rate=learning_rate,
            gradient_norm=self.zero.gradient_norm,
            is_skipped=is_skipped,
            squares_P=squares_P,
        )

    @contextmanager
    def averaged_weights(self, family: str = "ema") -> Iterator[None]:
        """The denoiser computes with the averaged weights inside. Collective over the world, at both ends."""
        average = self.averages[family]
        self.before_change()
        average.swap()
        self.zero.publish_weights()
        try:
            yield
        finally:
            average.swap()
            self.zero.publish_weights()

    def state(self) -> dict[str, Slice]:
        """All training state of this rank as `family/name`; the tensors are the live ones, which next change
        behind a call of `before_change`.

        Families: `master` (fp32 weights), `ema` and `ema2`, `exp_avg` and `exp_avg_sq`, or `momentum` of
        Muon's, of `Denoiser.canonical_parameters`, each rank its own slice; `buffer` of `canonical_buffers`,
        the same on every rank.
        """
        self.zero.ensure_moments()
        found = {
            f"buffer/{name}": Slice.whole(buffer)
            for name, buffer in self.denoiser.canonical_buffers().items()
        }
        for name, parameter in self.denoiser.canonical_parameters().items():
            fragment = self.zero.fragment(parameter)
            if fragment is None:
                continue
            flats = {
                "master": self.zero.masters[fragment.group],
                **{family: average.averages[fragment.group] for family, average in self.averages.items()},
                **self.zero.moments(fragment.group),
            }
            for family, flat in flats.items():
                values = flat.detach().narrow(0, fragment.flat_start, fragment.count)
                found[f"{family}/{name}"] = Slice(values, start=fragment.start, shape=tuple(parameter.shape))
        return found

    def restored(self, *, step_count: int) -> None:
        """After `state` was written to: publish the weights, and count on from `step_count`. Collective over
        the world."""
        self.step_count = step_count
        self.zero.set_adam_step(step_count)
        self.zero.publish_weights()


def accumulation_steps(config: Config, *, ranks: int) -> int:
    """Micro-batches of each of `ranks` data-parallel ranks in one optimizer step. Raises ValueError if the
    global batch does not split evenly."""
    at_once = config.run.micro_batch * ranks
    if config.run.global_batch % at_once != 0:
        raise ValueError(
            f"run.global_batch is {config.run.global_batch} but {counted(ranks, 'data-parallel rank')} of "
            f"run.micro_batch {config.run.micro_batch} take {counted(at_once, 'sample')} at once; "
            f"choose a multiple of {at_once}"
        )
    return config.run.global_batch // at_once


def _expert_parameters(denoiser: Denoiser) -> list[torch.nn.Parameter]:
    return [parameter for layer in denoiser.moe_layers() for _, parameter in layer.expert_parameters()]
