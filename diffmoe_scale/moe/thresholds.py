"""The dynamic thresholds of all layers, moved once an optimizer step."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from diffmoe_scale.moe.layer import MoELayer
from diffmoe_scale.words import counted


def untrained_thresholds(layers: Sequence[MoELayer]) -> str:
    """What keeps the thresholds of layers with predictors from being used; "" if they are trained. From 0 to
    a threshold an uncorrected average takes a few times 1 / (1 - decay) steps."""
    for layer in layers:
        predictor = layer.router.predictor
        steps = int(predictor.threshold_steps)
        needed = 1 if predictor.is_bias_corrected else round(3 / (1 - predictor.decay))
        if steps < needed:
            return (
                f"the experts' thresholds were trained for {counted(steps, 'step')}, and are near 0 before "
                f"{needed}: experts take nearly all tokens"
            )
    return ""


@torch.no_grad()
def update_thresholds(
    layers: Sequence[MoELayer], kth_probability_LE: Tensor, group: dist.ProcessGroup | None
) -> None:
    """Move the thresholds of all layers by the K-th probabilities of one optimizer step, averaged over
    `group`.

    Once a step and outside of forward. One collective over `group` (None: this process alone). Layers whose
    router has no predictor come with E = 0 and are not changed.
    """
    if kth_probability_LE.numel() == 0:
        return
    mean_LE = kth_probability_LE.float().clone()
    if group is not None and group.size() > 1:
        dist.all_reduce(mean_LE, group=group)
        mean_LE /= group.size()
    for layer, kth_probability_E in zip(layers, mean_LE, strict=True):
        layer.router.predictor.update_threshold(kth_probability_E)
