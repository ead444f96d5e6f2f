"""The loss at fixed times on fixed noise, by several rules of choosing experts: a curve over noise that can
be compared between steps and between rules.

R rules, T fixed times.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.reading.batch import Batch
from diffmoe_scale.diffusion.noise import sample_noise
from diffmoe_scale.model.networks import Networks
from diffmoe_scale.moe.routing import Routing, Selection
from diffmoe_scale.train.loss import condition_of, latents_of

NUM_TIMES = 8
TIMES = tuple((number + 1) / NUM_TIMES for number in range(NUM_TIMES))
"""1/8 to 8/8, which is noise alone."""


def rules_of(config: Config) -> dict[str, Selection]:
    """By name: how experts choose in training and, where it is another rule, when pictures are drawn.

    Routers without thresholds, and dense models, compute alike in both. With `sampling.capacity` the rule
    is `sampling.selection` without a calibration.
    """
    rules = {"train": Selection(rule="train")}
    if config.moe.has_thresholds:
        rules[config.sampling.selection] = Selection(config.sampling.selection, config.sampling.gamma)
    return rules


class FixedTimes:
    """Sums over the samples of all batches: losses and capacities [R, T], and how many samples there were."""

    def __init__(self, networks: Networks, rules: Mapping[str, Selection], *, seed: int) -> None:
        self.networks, self.rules, self.seed = networks, rules, seed
        shape = len(rules), NUM_TIMES
        self.loss_RT = torch.zeros(shape, device=networks.device)
        self.capacity_RT = torch.zeros(shape, device=networks.device)
        self.count = torch.zeros((), device=networks.device)

    def add(self, batch: Batch) -> None:
        """A sample's noise comes from (seed, its number) and is the same at all times. Collective over the
        expert-parallel group, and the pool's."""
        networks = self.networks
        latents_BCHW = latents_of(batch, networks.autoencoder, networks.device)
        is_finite_B = latents_BCHW.isfinite().flatten(1).all(1)
        # As in `denoising_loss`: routers refuse NaN, which is the sample's loss all the same.
        latents_BCHW = latents_BCHW.where(is_finite_B[:, None, None, None], 0.0)
        indices = batch.indices_B.tolist()
        _, noise_BCHW = sample_noise(self.seed, indices, latents_BCHW.shape[1:], networks.device)
        condition = networks.denoiser.encode(condition_of(batch, networks))
        weight_B = batch.weight_B.to(networks.device)
        spoiled_B = torch.where(is_finite_B, 0.0, torch.nan)
        self.count += weight_B.sum()
        for column, time in enumerate(TIMES):
            t_B = torch.full_like(weight_B, time)
            x_t_BCHW = networks.objective.add_noise(latents_BCHW, noise_BCHW, t_B)
            for row, selection in enumerate(self.rules.values()):
                embedded_B = networks.objective.embedding_time(t_B)
                prediction = networks.denoiser(x_t_BCHW, embedded_B, condition, selection)
                loss_B = networks.objective.loss(
                    prediction.value_BCHW, x_t_BCHW, latents_BCHW, noise_BCHW, t_B
                )
                self.loss_RT[row, column] += (loss_B * weight_B + spoiled_B).sum()
                if prediction.routings:
                    capacity_B = capacity_of_samples(prediction.routings, len(weight_B))
                    self.capacity_RT[row, column] += (capacity_B * weight_B).sum()

    def sums(self) -> Tensor:
        """All of it as one vector, for a reduction over ranks."""
        return torch.cat([self.loss_RT.flatten(), self.capacity_RT.flatten(), self.count.view(1)])

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """`loss/validation_at/RULE/K` at t = K/8; their mean `loss/validation_at/RULE`, and that of the
        capacity, `moe/validation_capacity/RULE`; {} without a sample."""
        count = float(sums[-1])
        if count == 0:
            return {}
        loss_RT, capacity_RT = (sums[:-1] / count).view(2, len(self.rules), NUM_TIMES).tolist()
        has_experts = bool(self.networks.denoiser.moe_layers())
        found: dict[str, float] = {}
        for rule, loss_T, capacity_T in zip(self.rules, loss_RT, capacity_RT, strict=True):
            found[f"loss/validation_at/{rule}"] = _mean(loss_T)
            found |= {f"loss/validation_at/{rule}/{number}": loss for number, loss in enumerate(loss_T, 1)}
            if has_experts:
                found[f"moe/validation_capacity/{rule}"] = _mean(capacity_T)
        return found


def capacity_of_samples(routings: Sequence[Routing], num_samples: int) -> Tensor:
    """[B]: the capacity of a pass for each sample, the mean over experts and MoE layers."""
    mask_LBNE = torch.stack([routing.mask_SE.unflatten(0, (num_samples, -1)) for routing in routings])
    return mask_LBNE.float().mean(dim=(0, 2, 3)) * mask_LBNE.shape[-1]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
