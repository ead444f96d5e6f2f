"""The optimizer, its parameter groups and its learning rate. The only file that imports NVIDIA's apex."""

import importlib.util
import logging

from torch import nn
from torch.optim import AdamW, Optimizer

from diffmoe_scale.config.optimizer import OptimizerConfig
from diffmoe_scale.config.schema import Config
from diffmoe_scale.model.denoiser import Denoiser
from diffmoe_scale.model.matrices import hidden_matrices
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.train.muon import Muon

logger = logging.getLogger(__name__)


def learning_rate(step: int, config: Config) -> float:
    """The peak rate at optimizer step `step` (the first is 1): linear warm-up, constant, then linear to 0
    after the last step."""
    optimizer, steps = config.optimizer, config.run.steps
    warmup_steps = min(optimizer.warmup_steps, config.run.steps)  # a first try of a few steps warms up, too
    warmup = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    decay_steps = optimizer.decay_fraction * steps
    decay = min(1.0, (steps - step + 1) / decay_steps) if decay_steps >= 1 else 1.0
    return optimizer.learning_rate * warmup * decay


def parameter_groups(denoiser: Denoiser, config: OptimizerConfig) -> list[dict[str, object]]:
    """Groups of one kind of parameter each: dense or expert-parallel, with weight decay or without, router or
    not, Muon's or AdamW's.

    `lr_ratio` is what the scheduled rate is multiplied by; `stacks` are the matrices of Muon's.
    Expert-parallel groups carry the marks by which DeepSpeed reduces them over the expert-data-parallel group
    (`moe`, and the name of the group as `name`).
    """
    routers = {id(parameter) for layer in denoiser.moe_layers() for parameter in layer.router.parameters()}
    embeddings = {id(parameter) for parameter in denoiser.embeddings()}
    stacks = hidden_matrices(denoiser) if config.kind == "muon" else {}
    members: dict[tuple[str, bool, bool, bool], list[nn.Parameter]] = {}
    for parameter in denoiser.parameters():
        is_decayed = parameter.dim() >= 2 and id(parameter) not in embeddings
        key = (expert_group_name(parameter), is_decayed, id(parameter) in routers, id(parameter) in stacks)
        members.setdefault(key, []).append(parameter)
    groups: list[dict[str, object]] = []
    for (expert_group, is_decayed, is_router, is_muon), parameters in members.items():
        ratio = config.router_learning_rate_ratio if is_router else 1.0
        groups.append(
            {
                "params": parameters,
                "name": expert_group or f"dense{len(groups)}",
                "weight_decay": config.weight_decay if is_decayed else 0.0,
                "lr_ratio": config.muon_learning_rate_ratio if is_muon else ratio,
                **({"moe": True} if expert_group else {}),
                **({"stacks": [stacks[id(parameter)] for parameter in parameters]} if is_muon else {}),
            }
        )
    return groups


def expert_group_name(parameter: nn.Parameter) -> str:
    """DeepSpeed's name of the group that an expert-parallel parameter belongs to; "" for what every rank
    holds."""
    # The marks of register_expert_groups.
    is_everywhere = getattr(parameter, "allreduce", True)
    return "" if is_everywhere else parameter.group_name  # type: ignore[attr-defined]


def build_optimizer(
    groups: list[dict[str, object]], config: OptimizerConfig, context: ParallelContext, *, is_offloaded: bool
) -> Optimizer:
    """Muon, or AdamW with decoupled weight decay: apex's where it is built and the state is on the GPU, else
    torch's fused one, on CPU too."""
    if config.kind == "muon":
        return Muon(
            groups,
            config,
            device=context.device,
            dp_group=context.dp_group,
            expert_dp_group=context.expert_dp_group,
        )
    rate, betas, eps = config.learning_rate, (config.beta1, config.beta2), config.eps
    # PyPI's `apex` is another package; NVIDIA's brings this extension.
    if context.device.type == "cuda" and not is_offloaded and importlib.util.find_spec("amp_C") is not None:
        from apex.optimizers import FusedAdam

        logger.info("optimizer: apex FusedAdam")
        return FusedAdam(groups, adam_w_mode=True, lr=rate, betas=betas, eps=eps)
    return AdamW(groups, fused=True, lr=rate, betas=betas, eps=eps)
