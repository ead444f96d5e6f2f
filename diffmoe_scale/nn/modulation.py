"""What time and condition do to a block or to the last layer: its shifts, scales and gates (adaLN).

B samples, D width, M = the numbers of a modulation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Modulation(nn.Linear):
    """A linear layer of its own: embedding of time and condition [B, D] -> [B, count * D] (DiT's adaLN)."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__(width, count * width)

    def forward(self, embedding_BD: Tensor) -> Tensor:
        return super().forward(F.silu(embedding_BD))


class ModulationTable(nn.Module):
    """A table of its own added to what all share: [B, M] -> [B, count * D], of which it takes the first
    (adaLN-single of PixArt-alpha, arXiv 2310.00426 section 2.3). Draws no numbers: `initialize` does."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.table_CD = nn.Parameter(torch.empty(count, width))

    def initialize(self, generator: torch.Generator) -> None:
        """PixArt-alpha's: normal, of variance 1 / D."""
        nn.init.normal_(self.table_CD, std=self.table_CD.shape[1] ** -0.5, generator=generator)

    def forward(self, shared_BM: Tensor) -> Tensor:
        return shared_BM[:, : self.table_CD.numel()] + self.table_CD.flatten()
