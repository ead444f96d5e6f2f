"""The dynamic thresholds of all layers, moved once an optimizer step."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from diffmoe_scale.moe.layer import MoELayer


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
