"""The loss of a micro-batch, and what a step wants to know of it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffmoe_scale.data.reading.batch import Batch, to_unit_range
from diffmoe_scale.diffusion.noise import sample_noise
from diffmoe_scale.diffusion.objective import Objective
from diffmoe_scale.encoders.autoencoder.build import Autoencoder
from diffmoe_scale.model.condition import Condition
from diffmoe_scale.model.networks import Networks
from diffmoe_scale.model.transformer import Prediction
from diffmoe_scale.moe.routing import Routing, Selection

NUM_TIME_BINS = 10


@dataclass(frozen=True)
class Aligned:
    """What a loss has of alignment: `cosine` of tokens [B, N, D] with the features that they are aligned
    with, of each sample [B]; and the weight of its negative mean."""

    weight: float
    cosine: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class StepLoss:
    """`total` is what is differentiated; `parts` are its detached terms: means over the micro-batch, sums of
    each time bin, losses of samples."""

    total: Tensor
    parts: dict[str, Tensor]
    routings: list[Routing]


def latents_of(batch: Batch, autoencoder: Autoencoder, device: torch.device) -> Tensor:
    """The batch's latents [B, C, H, W] in fp32, from the shards or of its images."""
    if batch.pixels_BHWC is not None:
        return autoencoder.encode(to_unit_range(batch.pixels_BHWC.to(device, non_blocking=True)))
    assert batch.latents_BCHW is not None
    return batch.latents_BCHW.to(device, non_blocking=True).float()


def condition_of(batch: Batch, networks: Networks) -> Condition:
    """What the network gets with the batch: its captions, encoded here unless the shards hold features."""
    return networks.condition(
        batch.captions,
        batch.labels_B,
        sizes_BZ=batch.sizes_BZ,
        text=batch.text,
        dropped_B=batch.dropped_B,
    )


def denoising_loss(
    predict: Callable[..., Prediction],
    objective: Objective,
    batch: Batch,
    latents_BCHW: Tensor,
    condition: Condition,
    *,
    seed: int,
    selection: Selection,
    aligned: Aligned | None = None,
) -> StepLoss:
    """Noise the latents, predict, compare. `predict` is the engine or a plain Denoiser.

    Noise and time come from (seed, global sample number): the same for every layout of ranks. Samples that
    failed to decode have weight 0 and still count in the mean, so that the loss does not depend on how they
    fall on ranks.

    A sample whose latents are not finite has a loss of NaN. The network is given zeros for it: routers refuse
    NaN, and would spread it over their pool. A total that is not finite has gradients of NaN, which skip the
    step on all ranks.
    """
    device = latents_BCHW.device
    is_finite_B = latents_BCHW.isfinite().flatten(1).all(1)
    latents_BCHW = latents_BCHW.where(is_finite_B[:, None, None, None], 0.0)
    uniform_B, noise_BCHW = sample_noise(seed, batch.indices_B.tolist(), latents_BCHW.shape[1:], device)
    t_B = objective.sample_time(uniform_B)
    x_t_BCHW = objective.add_noise(latents_BCHW, noise_BCHW, t_B)
    prediction = predict(x_t_BCHW, objective.embedding_time(t_B), condition, selection)
    weight_B = batch.weight_B.to(device)
    loss_B = objective.loss(prediction.value_BCHW, x_t_BCHW, latents_BCHW, noise_BCHW, t_B) * weight_B
    loss_B = loss_B * torch.where(is_finite_B, 1.0, torch.nan)
    diffusion = loss_B.mean()
    auxiliary = mean_auxiliary_losses(prediction.routings)
    if prediction.layer_values:
        losses = [objective.loss(v, x_t_BCHW, latents_BCHW, noise_BCHW, t_B) for v in prediction.layer_values]
        auxiliary["target"] = prediction.layer_weight * (torch.stack(losses) * weight_B).mean()
    cosines: dict[str, Tensor] = {}
    if aligned is not None:
        assert prediction.aligned_BND is not None, "transformer.aligned_block is not set"
        cosine = (aligned.cosine(prediction.aligned_BND) * weight_B).mean()
        auxiliary["alignment"] = -aligned.weight * cosine
        cosines["alignment/cosine"] = cosine.detach()
    parts = {"loss/diffusion": diffusion.detach()} | {
        f"loss/{name}": value.detach() for name, value in auxiliary.items()
    }
    parts |= cosines
    parts |= _loss_by_time(loss_B.detach(), weight_B, t_B)
    total = diffusion + sum(auxiliary.values(), start=torch.zeros((), device=device))
    # A loss that overflowed can have finite gradients, which would become a step.
    total = total * torch.where(total.isfinite(), 1.0, torch.nan)
    return StepLoss(total=total, parts=parts, routings=prediction.routings)


def mean_auxiliary_losses(routings: list[Routing]) -> dict[str, Tensor]:
    """Weighted losses of the routers by name, averaged over MoE layers (DiffMoE eq. 13)."""
    names = routings[0].aux_losses if routings else {}
    return {name: torch.stack([routing.aux_losses[name] for routing in routings]).mean() for name in names}


def _loss_by_time(loss_B: Tensor, weight_B: Tensor, t_B: Tensor) -> dict[str, Tensor]:
    """Each sample's loss and tenth of the time axis, and each tenth's sums of loss and weight; many are
    empty, so the mean is taken later."""
    bins_B = (t_B * NUM_TIME_BINS).long().clamp(max=NUM_TIME_BINS - 1)
    one_hot = torch.nn.functional.one_hot(bins_B, NUM_TIME_BINS).float()
    sums = {"time_bin_sum": one_hot.T @ loss_B.float(), "time_bin_count": one_hot.T @ weight_B}
    return sums | {"sample_loss_B": loss_B, "time_bin_B": bins_B}
