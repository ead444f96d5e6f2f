"""What thresholds are held against (capacity predictors, or the scores of routers without one), counted by
layer and expert while pictures were drawn.

L layers with experts, E experts, X equal bins of the logit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from diffmoe_scale.moe.layer import MoELayer
from diffmoe_scale.moe.routing import RoutingContext

LOWEST, HIGHEST, NUM_BINS = -24.0, 24.0, 9600
"""Logits beyond are counted at the ends; a bin is 0.005 wide."""


class LogitCounts:
    """Counts [L, E, X] of the logits that the layers' thresholds are on, of all tokens in all calls of the
    network."""

    def __init__(self, layers: Sequence[MoELayer], *, device: torch.device) -> None:
        self.layers = list(layers)
        num_experts = self.layers[0].token_dispatcher.num_experts
        shape = len(self.layers), num_experts, NUM_BINS
        self.counts_LEX = torch.zeros(shape, dtype=torch.float64, device=device)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what routers are given inside, whatever rule experts choose by."""
        handles = [
            layer.router.register_forward_hook(self._counter(place))
            for place, layer in enumerate(self.layers)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _counter(self, place: int) -> Callable[[nn.Module, tuple[Tensor, RoutingContext], object], None]:
        router = self.layers[place].router

        def count(_: nn.Module, arguments: tuple[Tensor, RoutingContext], answer: object) -> None:
            self.add(place, router.decision_logits(*arguments))

        return count

    def add(self, place: int, logits_SE: Tensor) -> None:
        share_SE = (logits_SE - LOWEST) / (HIGHEST - LOWEST)
        bins_ES = (share_SE * NUM_BINS).clamp(0, NUM_BINS - 1).long().t()  # an integer has no infinity
        ones_ES = torch.ones_like(bins_ES, dtype=self.counts_LEX.dtype)
        self.counts_LEX[place].scatter_add_(1, bins_ES, ones_ES)

    def quantiles(self, share: float, *, is_shared: bool = False) -> dict[int, Tensor]:
        """By block, the probabilities [E] that a `share` of each expert's tokens stays below; `is_shared`:
        the one [1] for all experts of a layer."""
        counts_LEX = self.counts_LEX.sum(dim=1, keepdim=True) if is_shared else self.counts_LEX
        logit_LE = quantile_of(counts_LEX, share)
        return {
            layer.layer_index: logit_E.sigmoid().float()
            for layer, logit_E in zip(self.layers, logit_LE, strict=True)
        }

    def pooled_quantile(self, share: float) -> float:
        """The logit that a `share` of all tokens, layers and experts stays below."""
        return float(quantile_of(self.counts_LEX.sum(dim=(0, 1)), share))


def quantile_of(counts_X: Tensor, share: float) -> Tensor:
    """The logit below which a `share` of the counts [..., X] lies, even within a bin: [...]."""
    reached_X = counts_X.cumsum(dim=-1)
    wanted = share * reached_X[..., -1:]
    bin_1 = (reached_X < wanted).sum(dim=-1, keepdim=True).clamp(max=NUM_BINS - 1)
    count_1 = counts_X.gather(-1, bin_1)
    before_1 = reached_X.gather(-1, bin_1) - count_1
    within_1 = ((wanted - before_1) / count_1.clamp(min=1)).clamp(0, 1)
    return (LOWEST + (bin_1 + within_1) * (HIGHEST - LOWEST) / NUM_BINS).squeeze(-1)


def thresholds_on(thresholds: Mapping[int, Sequence[float]], device: torch.device) -> dict[int, Tensor]:
    """Thresholds [E] by block, as a Selection holds them."""
    return {block: torch.tensor(values, device=device) for block, values in thresholds.items()}
