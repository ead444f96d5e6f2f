"""The state of all routers, moved once an optimizer step: thresholds, and biases that balance."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from diffmoe_scale.moe.layer import MoELayer
from diffmoe_scale.words import counted


def untrained_thresholds(layers: Sequence[MoELayer]) -> str:
    """What keeps the thresholds of layers that have them from being used; "" if they are trained. From 0 to a
    threshold an uncorrected average takes a few times 1 / (1 - decay) steps."""
    for layer in layers:
        thresholds = layer.router.thresholds
        if thresholds is None:
            continue
        steps = int(thresholds.threshold_steps)
        needed = 1 if thresholds.is_bias_corrected else round(3 / (1 - thresholds.decay))
        if steps < needed:
            return (
                f"the experts' thresholds were trained for {counted(steps, 'step')}, and are near 0 before "
                f"{needed}: experts take nearly all tokens"
            )
    return ""


@torch.no_grad()
def update_routers(
    layers: Sequence[MoELayer], statistics: Sequence[Tensor], group: dist.ProcessGroup | None
) -> None:
    """Move the state of all routers by `Routing.statistic_X` of one optimizer step: [L, X] of each
    micro-batch of this rank.

    Once a step and outside of forward. One collective over `group` (None: this process alone). Sums are
    fp64, so that counts are exact in any layout of ranks. Routers without state come with X = 0 and are not
    changed.
    """
    if not statistics or statistics[0].numel() == 0:
        return
    sum_LX = torch.stack(list(statistics)).double().sum(dim=0)
    count = len(statistics)
    if group is not None and group.size() > 1:
        dist.all_reduce(sum_LX, group=group)
        count *= group.size()
    for layer, sum_X in zip(layers, sum_LX, strict=True):
        layer.router.learn(sum_X, count)
