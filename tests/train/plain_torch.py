"""The specification of the engine: the training of runs.py by plain torch on one process."""

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from diffmoe_scale.config.schema import Config
from diffmoe_scale.moe.thresholds import update_routers
from tests.moe.layers import alone
from tests.train.plain_muon import PlainMuon
from tests.train.runs import STEPS, Run, compute_loss, tiny_batch, tiny_config, tiny_pipeline


def train_alone(settings: list[str], *, steps: int = STEPS) -> Run:
    """The specification: one process, torch's AdamW or a plain Muon, torch's clipping, no DeepSpeed.
    The norm is of all gradients but the capacity predictors'."""
    config = tiny_config(settings)
    pipeline = tiny_pipeline(config, alone())
    parameters = pipeline.denoiser.canonical_parameters()
    averages = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    groups = [plain_group(name, parameter, config) for name, parameter in parameters.items()]
    optimizer: torch.optim.AdamW | PlainMuon = torch.optim.AdamW(groups, eps=config.optimizer.eps)
    if config.optimizer.kind == "muon":
        optimizer = PlainMuon(parameters, groups, config)
    run, count = Run(), config.run.micro_batch
    for step in range(1, steps + 1):
        losses, statistics = [], []
        for first in range((step - 1) * config.run.global_batch, step * config.run.global_batch, count):
            loss = compute_loss(pipeline.denoiser, pipeline, tiny_batch(first, count, config=config))
            (loss.total * count / config.run.global_batch).backward()
            losses.append(float(loss.total.detach()))
            statistics.append(torch.stack([routing.statistic_X for routing in loss.routings]))
        counted = [parameter.grad for name, parameter in parameters.items() if ".predictor." not in name]
        norm = get_total_norm([gradient for gradient in counted if gradient is not None])
        clip_grads_with_norm_(parameters.values(), config.optimizer.clip_norm, norm)
        run.norms.append(float(norm))
        optimizer.step()
        optimizer.zero_grad()
        run.losses.append(sum(losses) / len(losses))
        update_routers(pipeline.denoiser.moe_layers(), statistics, None)
        decay = min(config.optimizer.ema_decay, (1 + step) / (10 + step))
        averages = {
            name: decay * average + (1 - decay) * parameters[name].detach()
            for name, average in averages.items()
        }
    families: dict[str, dict[str, Tensor]] = {
        "master": {**parameters},
        "ema": averages,
        "buffer": pipeline.denoiser.canonical_buffers(),
    }
    for moment in ("exp_avg", "exp_avg_sq", "momentum"):
        families[moment] = {
            name: optimizer.state[parameter][moment]
            for name, parameter in parameters.items()
            if moment in optimizer.state[parameter]
        }
    run.state = {
        f"{family}/{name}": tensor.detach().flatten().numpy()
        for family, tensors in families.items()
        for name, tensor in tensors.items()
    }
    return run


def plain_group(name: str, parameter: Tensor, config: Config) -> dict[str, object]:
    rate = config.optimizer.learning_rate * (
        config.optimizer.router_learning_rate_ratio if ".router." in name else 1.0
    )
    is_decayed = parameter.dim() == 2 and "class_embedding" not in name
    return {
        "params": [parameter],
        "lr": rate,
        "weight_decay": config.optimizer.weight_decay if is_decayed else 0.0,
    }
