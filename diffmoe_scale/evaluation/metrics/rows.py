"""The features of all pictures, for metrics that compare pictures one by one.

B pictures of a batch, N of all, F features.
"""

import torch
import torch.distributed as dist
from torch import Tensor


class Rows:
    """Features in float32, in the order of the pictures' places whatever order they came in."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.chunks: list[tuple[Tensor, Tensor]] = []
        """Places and features."""

    def update(self, features_BF: Tensor, places_B: Tensor) -> None:
        self.chunks.append((places_B, features_BF.float().clone()))

    def merge(self, group: dist.ProcessGroup) -> None:
        """Send all rows to the group's first rank. Collective over a gloo group; the others keep theirs."""
        counts: list[list[int]] = [[] for _ in range(group.size())]
        dist.all_gather_object(counts, [len(places_B) for places_B, _ in self.chunks], group=group)
        if group.rank() > 0:
            for places_B, features_BF in self.chunks:
                dist.send(places_B, group=group, group_dst=0)
                dist.send(features_BF, group=group, group_dst=0)
            return
        for rank in range(1, group.size()):
            for count in counts[rank]:
                places_B = torch.empty(count, dtype=torch.int64)
                features_BF = torch.empty(count, self.width)
                dist.recv(places_B, group=group, group_src=rank)
                dist.recv(features_BF, group=group, group_src=rank)
                self.chunks.append((places_B, features_BF))

    def gather(self) -> Tensor:
        """[N, F]. Chunk by chunk is moved, so that the features are not held twice."""
        places_N = torch.cat([torch.empty(0, dtype=torch.int64), *(places_B for places_B, _ in self.chunks)])
        if len(self.chunks) == 1 and (places_N[1:] > places_N[:-1]).all():
            return self.chunks[0][1]
        ranks_N = torch.empty_like(places_N)
        ranks_N[places_N.argsort()] = torch.arange(len(places_N))
        rows_NF, end = torch.empty(len(places_N), self.width), len(places_N)
        while self.chunks:
            places_B, features_BF = self.chunks.pop()
            rows_NF[ranks_N[end - len(places_B) : end]] = features_BF
            end -= len(places_B)
        self.chunks = [(places_N.sort().values, rows_NF)]
        return rows_NF
