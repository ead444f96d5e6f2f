"""The denoiser under DeepSpeed ZeRO, its experts told apart, with the weight average. DeepSpeed's door."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any  # DeepSpeed is untyped

import torch
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.zero.config import ZERO_OPTIMIZATION
from torch import Tensor

from diffmoe_scale.config.schema import Config
from diffmoe_scale.model.denoiser import Denoiser
from diffmoe_scale.model.transformer import Prediction
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.parallel.expert_groups import register_expert_groups
from diffmoe_scale.parallel.slice import Slice
from diffmoe_scale.train.ema import WeightAverage
from diffmoe_scale.train.optim import build_optimizer, parameter_groups

MOMENTS = ("exp_avg", "exp_avg_sq")
MAX_BUCKET = 200_000_000


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step did. `gradient_norm` is global and from before clipping; a skipped step changed
    nothing."""

    learning_rate: float
    gradient_norm: float
    is_skipped: bool


class _ExpertEngine(DeepSpeedEngine):
    """DeepSpeed's engine told that the model has experts: it knows only its own layer classes (engine.py,
    has_moe_layers)."""

    has_experts = False

    def _configure_distributed_model(self, model: torch.nn.Module) -> None:
        super()._configure_distributed_model(model)
        self.has_moe_layers = self.has_experts

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


class Engine:
    """Forward, backward and optimizer step of a rank. Dense gradients are averaged over all ranks; an
    expert's are summed over its replicas and divided by the same number, so that one process and many take
    the same step."""

    def __init__(self, denoiser: Denoiser, config: Config, context: ParallelContext) -> None:
        """Collective over the world. Raises ValueError if the global batch does not split over the ranks."""
        self.denoiser = denoiser
        self.accumulation = accumulation_steps(config, context)
        self.step_count = 0
        """Optimizer steps that changed the weights."""
        self._pending = 0
        has_experts = context.expert_parallel > 1
        if has_experts:
            register_expert_groups(context, _expert_parameters(denoiser))
        optimizer = build_optimizer(
            parameter_groups(denoiser, config.optimizer),
            config.optimizer,
            device=context.device,
            is_offloaded=config.parallel.offload_optimizer,
        )
        kind = type("ExpertEngine", (_ExpertEngine,), {"has_experts": has_experts})
        settings = deepspeed_settings(
            config, context, num_parameters=sum(parameter.numel() for parameter in denoiser.parameters())
        )
        self._deepspeed = kind(
            args=None,
            model=denoiser,
            optimizer=optimizer,
            config=settings,
            config_class=DeepSpeedConfig(settings),
            dist_init_required=False,
        )
        self._zero = self._deepspeed.optimizer
        if has_experts:
            assert [
                size
                for size, group in zip(
                    self._zero.partition_count, self._zero.optimizer.param_groups, strict=True
                )
                if group.get("moe")
            ] == (
                [context.expert_dp_group.size()]
                * sum(bool(group.get("moe")) for group in self._zero.optimizer.param_groups)
            ), "experts must be reduced over the expert-data-parallel group"
        self.average = WeightAverage(
            self._zero.single_partition_of_fp32_groups,
            decay=config.optimizer.ema_decay,
            has_warmup=config.optimizer.ema_warmup,
        )

    def __call__(self, *arguments: Any) -> Prediction:
        prediction: Prediction = self._deepspeed(*arguments)
        return prediction

    def backward(self, loss: Tensor) -> None:
        """Gradients of one micro-batch's mean loss; call `accumulation` times before `step`. Collective over
        the world."""
        self._deepspeed.backward(loss)
        self._pending += 1
        if self._pending < self.accumulation:
            self._deepspeed.step()  # counts the micro-batch; the weights stay

    def step(self, learning_rate: float) -> StepResult:
        """Clip by the global norm, update, gather the new weights, average them. Collective over the world.

        A gradient that is not finite skips the step on all ranks.
        """
        assert self._pending == self.accumulation, (
            f"{self._pending} of {self.accumulation} micro-batches before a step"
        )
        self._pending = 0
        for group in self._zero.optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_ratio"]
        self._deepspeed.step()
        is_skipped = bool(self._zero.overflow)
        if not is_skipped:
            self.step_count += 1
            self.average.update(self.step_count)
        return StepResult(
            learning_rate=learning_rate,
            gradient_norm=float(self._deepspeed.get_global_grad_norm()),
            is_skipped=is_skipped,
        )

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The denoiser computes with the averaged weights inside. Collective over the world, at both ends."""
        self.average.swap()
        self._zero.update_lp_params()
        try:
            yield
        finally:
            self.average.swap()
            self._zero.update_lp_params()

    def state(self) -> dict[str, Slice]:
        """All training state of this rank as `family/name`; the tensors are the live ones.

        Families: `master` (fp32 weights), `ema`, `exp_avg`, `exp_avg_sq` of `Denoiser.canonical_parameters`,
        each rank its own slice; `buffer` of `canonical_buffers`, the same on every rank.
        """
        self._ensure_moments()
        found = {
            f"buffer/{name}": Slice.whole(buffer)
            for name, buffer in self.denoiser.canonical_buffers().items()
        }
        for name, parameter in self.denoiser.canonical_parameters().items():
            mapping = parameter._hp_mapping  # type: ignore[attr-defined]  # DeepSpeed's link to the fp32 slices
            if mapping is None:
                continue
            group, place = mapping.param_group_index, mapping.hp_fragment_address
            master = self._zero.single_partition_of_fp32_groups[group]
            moments = {family: self._zero.optimizer.state[master][family] for family in MOMENTS}
            for family, flat in {"master": master, "ema": self.average.averages[group], **moments}.items():
                values = flat.detach().narrow(0, place.start, place.numel)
                found[f"{family}/{name}"] = Slice(
                    values, start=mapping.lp_fragment_address.start, shape=tuple(parameter.shape)
                )
        return found

    def _ensure_moments(self) -> None:
        """AdamW makes its moments in the first step; a checkpoint is loaded before that."""
        masters = self._zero.single_partition_of_fp32_groups
        new = [master for master in masters if not self._zero.optimizer.state[master]]
        for master in new:
            self._zero.optimizer.state[master] |= {family: torch.zeros_like(master) for family in MOMENTS}
        if new:
            self._set_adam_step(0)

    def restored(self, *, step_count: int) -> None:
        """After `state` was written to: publish the weights, and count on from `step_count`. Collective over
        the world."""
        self.step_count = step_count
        self._set_adam_step(step_count)
        self._zero.update_lp_params()

    def _set_adam_step(self, step: int) -> None:
        optimizer = self._zero.optimizer
        for group in optimizer.param_groups:
            if isinstance(optimizer, torch.optim.AdamW):
                for flat in group["params"]:
                    optimizer.state[flat]["step"] = torch.tensor(float(step), device=flat.device)
            else:  # apex counts by group, and begins to in its first step
                group["step"] = step


def accumulation_steps(config: Config, context: ParallelContext) -> int:
    """Micro-batches of a rank in one optimizer step. Raises ValueError if the global batch does not split
    evenly."""
    at_once = config.run.micro_batch * context.dp_group.size()
    if config.run.global_batch % at_once != 0:
        raise ValueError(
            f"run.global_batch is {config.run.global_batch} but {context.dp_group.size()} data-parallel ranks of run.micro_batch "
            f"{config.run.micro_batch} take {at_once} samples at once; choose a multiple of {at_once}"
        )
    return config.run.global_batch // at_once


def deepspeed_settings(config: Config, context: ParallelContext, *, num_parameters: int) -> dict[str, Any]:
    """DeepSpeed's configuration of a run: it shards and steps; schedule, logging and checkpoints are ours."""
    # DeepSpeed wants an even number.
    bucket = min(MAX_BUCKET, num_parameters + num_parameters % 2)
    settings: dict[str, Any] = {
        "train_batch_size": config.run.global_batch,
        "train_micro_batch_size_per_gpu": config.run.micro_batch,
        "gradient_accumulation_steps": accumulation_steps(config, context),
        "gradient_clipping": config.optimizer.clip_norm,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**12,
        "zero_optimization": {
            "stage": config.parallel.zero_stage,
            "contiguous_gradients": True,
            "overlap_comm": context.device.type == "cuda",
            "reduce_scatter": True,
            # DeepSpeed allocates the reduce bucket whole, 5e8 elements by default: no more than the model
            # needs.
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            # Parameters keep their order, which checkpoints rely on.
            "round_robin_gradients": False,
        },
    }
    if config.parallel.offload_optimizer:
        settings["zero_optimization"]["offload_optimizer"] = {
            "device": "cpu",
            "pin_memory": context.device.type == "cuda",
        }
        # torch's fused AdamW instead of DeepSpeed's, which is compiled for minutes at its first use.
        settings["zero_force_ds_cpu_optimizer"] = False
    if config.model.precision == "bf16":
        settings["bf16"] = {"enabled": True, "check_grad_overflow": True}
        # Sums over many micro-batches and ranks would lose small gradients in bf16.
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
        settings["communication_data_type"] = "fp32"
    return settings


def _expert_parameters(denoiser: Denoiser) -> list[torch.nn.Parameter]:
    return [parameter for layer in denoiser.moe_layers() for _, parameter in layer.expert_parameters()]
