"""DeepSpeed's ZeRO optimizer behind names of our own.

Every private name of DeepSpeed that training needs is in this file, as of deepspeed 0.19.8.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any  # DeepSpeed is untyped

import torch
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.zero.config import ZERO_OPTIMIZATION
from torch import Tensor, nn

from diffmoe_scale.config.schema import Config
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.train.muon import MOMENTUM
from diffmoe_scale.train.zero_settings import deepspeed_settings

MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroEngine(DeepSpeedEngine):
    """DeepSpeed's engine for a model of ours."""

    def _configure_distributed_model(self, model: nn.Module) -> None:
        super()._configure_distributed_model(model)
        # DeepSpeed looks for experts by its own layer classes. Ours are known by the mark that
        # register_expert_groups sets.
        self.has_moe_layers = any(is_spread_expert(parameter) for parameter in model.parameters())

    def _do_optimizer_sanity_check(self, basic_optimizer: Any) -> str:
        super()._do_optimizer_sanity_check(basic_optimizer)
        # For bf16 added up in fp32 at stage 1 DeepSpeed 0.19.8 would answer BF16_Optimizer, which keeps its
        # state in another way; its ZeRO optimizer, used in all other cases, can do it at both stages.
        return ZERO_OPTIMIZATION

    def save_checkpoint(self, *_: Any, **__: Any) -> None:
        raise RuntimeError(
            "DeepSpeed's own checkpoints would hold rank 0's experts only; use checkpoint.store"
        )

    load_checkpoint = save_checkpoint


@dataclass(frozen=True)
class Fragment:
    """The part of a parameter whose fp32 weights this rank owns, flat: elements `start` to `start + count` of
    the parameter lie at `flat_start` of the group's master."""

    group: int
    start: int
    count: int
    flat_start: int


class Zero:
    """A model whose fp32 weights ("masters") and moments are split over the ranks that hold its weights.

    A master is one flat fp32 tensor a parameter group: this rank's slice of all its parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        config: Config,
        context: ParallelContext,
        *,
        accumulation: int,
        build_optimizer: Callable[[], torch.optim.Optimizer],
        uncounted: Collection[nn.Parameter] = (),
    ) -> None:
        """The gradients of `uncounted` are no part of the norm, and are clipped by the same factor as all
        others. Collective over the world. Experts are marked before (register_expert_groups)."""
        settings = deepspeed_settings(
            config,
            context,
            accumulation=accumulation,
            num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        )
        self._engine = ZeroEngine(
            args=None,
            model=model,
            optimizer=build_optimizer(),
            config=settings,
            config_class=DeepSpeedConfig(settings),
            dist_init_required=False,
        )
        self._zero = self._engine.optimizer
        self._uncounted = frozenset(uncounted)
        for size, group in zip(self._zero.partition_count, self.groups, strict=True):
            assert not group.get("moe") or size == context.expert_dp_group.size(), (
                "experts must be reduced over the expert-data-parallel group"
            )

    def __call__(self, *arguments: Any) -> Any:
        return self._engine(*arguments)

    def backward(self, loss: Tensor) -> None:
        """Collective over the world."""
        self._engine.backward(loss)

    def step(self) -> None:
        """Count a micro-batch; after the last of a step, clip, update and gather the weights. Collective over
        the world."""
        if self._engine.is_gradient_accumulation_boundary():
            self._count_bad_gradients()
        self._engine.step()

    def _count_bad_gradients(self) -> None:
        """Leave the uncounted gradients out of the norm, but for those that are not finite: by the norm
        DeepSpeed knows, in fp32, that a step must be skipped."""
        pairs = [
            (parameter, gradient)
            for group, parameters in enumerate(self._zero.params_in_partition)
            for parameter, gradient in self._gradients(group, parameters)
            if parameter in self._uncounted
        ]
        if not pairs:
            return
        norms = torch.stack(torch._foreach_norm([gradient for _, gradient in pairs]))
        for (parameter, _), is_finite in zip(pairs, norms.isfinite().tolist(), strict=True):
            # DeepSpeed's mark of parameters that another rank of a pipeline counts.
            parameter.ds_pipe_replicated = is_finite  # type: ignore[attr-defined]

    @property
    def is_skipped(self) -> bool:
        """The last step found a gradient that is not finite, and changed nothing."""
        return bool(self._zero.overflow)

    @property
    def gradient_norm(self) -> float:
        """Of the last step, global, of the counted gradients and from before clipping."""
        return float(self._engine.get_global_grad_norm())

    def gradient_squares(self, part_of: Mapping[nn.Parameter, int], *, num_parts: int) -> Tensor:
        """Before the step that uses them: of the gradients that this rank owns the sum of squares of each
        part, [num_parts]. Those of all ranks and counted parts add up to the square of `gradient_norm`."""
        squares_P = torch.zeros(num_parts, device=self._zero.device)
        for group, parameters in enumerate(self._zero.params_in_partition):
            by_part: dict[int, list[Tensor]] = {}
            for parameter, gradient in self._gradients(group, parameters):
                by_part.setdefault(part_of[parameter], []).append(gradient)
            for part, gradients in by_part.items():
                norms = torch.stack(torch._foreach_norm(gradients, dtype=torch.float32))
                squares_P[part] += norms.square().sum()
        return squares_P

    def _gradients(
        self, group: int, parameters: Sequence[nn.Parameter]
    ) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """A parameter that the border of a rank's slice cuts is there with its share."""
        if self._zero.cpu_offload:  # the gradients are on the way already, their norms are kept
            norms = self._zero.norm_for_param_grads
            for parameter in parameters:
                number = self._zero.get_param_id(parameter)
                yield parameter, norms[number].float().to(self._zero.device)
            return
        gradients = self._zero.averaged_gradients[group]
        owned = [gradient for gradient in gradients if not getattr(gradient, "_zero_padding", False)]
        # As DeepSpeed pairs them; behind them may be padding.
        yield from zip(parameters, owned, strict=False)

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's parameter groups, in the order of `masters`."""
        groups: list[dict[str, Any]] = self._zero.optimizer.param_groups
        return groups

    @property
    def masters(self) -> Sequence[Tensor]:
        """The fp32 weights of this rank, a flat tensor a group."""
        masters: Sequence[Tensor] = self._zero.single_partition_of_fp32_groups
        return masters

    def moments(self, group: int) -> dict[str, Tensor]:
        """AdamW's moments of a group by name, or Muon's momentum, flat as its master. They are there after
        `ensure_moments`."""
        state = self._zero.optimizer.state[self.masters[group]]
        return {name: state[name] for name in self._moment_names(group)}

    def fragment(self, parameter: nn.Parameter) -> Fragment | None:
        """None if this rank owns nothing of the parameter."""
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]  # DeepSpeed's link to the fp32 slices
        if mapping is None:
            return None
        place = mapping.hp_fragment_address
        return Fragment(
            group=mapping.param_group_index,
            start=mapping.lp_fragment_address.start,
            count=place.numel,
            flat_start=place.start,
        )

    def publish_weights(self) -> None:
        """Give the model the masters' values, in its own format. Collective over the world."""
        self._zero.update_lp_params()

    def ensure_moments(self) -> None:
        """The optimizer makes its moments in the first step; a checkpoint is loaded before that."""
        state = self._zero.optimizer.state
        new = [number for number, master in enumerate(self.masters) if not state[master]]
        for number in new:
            master = self.masters[number]
            state[master] |= {name: torch.zeros_like(master) for name in self._moment_names(number)}
        if new:
            self.set_adam_step(0)

    def _moment_names(self, group: int) -> tuple[str, ...]:
        return (MOMENTUM,) if "stacks" in self.groups[group] else MOMENTS

    def set_adam_step(self, step: int) -> None:
        """AdamW corrects its moments' bias by the number of steps taken."""
        optimizer = self._zero.optimizer
        for group in optimizer.param_groups:
            if "stacks" in group:  # Muon's momentum has no bias to correct
                continue
            if isinstance(optimizer, torch.optim.AdamW):
                for flat in group["params"]:
                    optimizer.state[flat]["step"] = torch.tensor(float(step), device=flat.device)
            else:  # apex counts by group, and begins to in its first step
                group["step"] = step


def is_spread_expert(parameter: nn.Parameter) -> bool:
    """True for a parameter that `register_expert_groups` marked."""
    return not getattr(parameter, "allreduce", True)
