"""Whole matrices from what ZeRO leaves each rank: a slice of all of them, cut without regard to where a
matrix begins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from diffmoe_scale.model.matrices import Stack


@dataclass(frozen=True)
class Piece:
    """Elements `offset` to `offset + count` of a matrix, which begin at `start` of a rank's slice."""

    matrix: int
    offset: int
    start: int
    count: int

    def of_slice(self, flat: Tensor) -> Tensor:
        return flat.narrow(0, self.start, self.count)

    def of_matrix(self, matrix: Tensor) -> Tensor:
        return matrix.view(-1).narrow(0, self.offset, self.count)


class MatrixShares:
    """The matrices of a parameter group, of which every rank of `group` holds a slice of `share` elements.

    Each matrix has one owner, the first of the ranks that hold most of it. Only matrices that the border of a
    slice cuts travel.
    """

    def __init__(self, stacks: Sequence[Stack], *, share: int, group: dist.ProcessGroup) -> None:
        self._group, rank = group, group.rank()
        self.shapes = [(stack.rows, stack.columns) for stack in stacks for _ in range(stack.count)]
        pieces = _cut(self.shapes, share=share, ranks=group.size())
        holders: dict[int, dict[int, int]] = {}
        for holder, held in enumerate(pieces):
            for piece in held:
                holders.setdefault(piece.matrix, {})[holder] = piece.count
        owner = {matrix: max(counts, key=lambda r: counts[r]) for matrix, counts in holders.items()}
        self.pieces = pieces[rank]
        """Of this rank, in the order of its slice."""
        self._owned = {piece.matrix: piece for piece in self.pieces if owner[piece.matrix] == rank}
        self._has_cuts = any(len(counts) > 1 for counts in holders.values())
        self._lent = [
            [piece for piece in self.pieces if owner[piece.matrix] == other != rank]
            for other in range(group.size())
        ]
        """Pieces here of matrices that another rank owns, by that rank."""
        self._borrowed = [
            [piece for piece in held if owner[piece.matrix] == rank != other]
            for other, held in enumerate(pieces)
        ]
        """Pieces on another rank of matrices that this one owns, by that rank."""

    def are_fed(self, gradient: Tensor) -> list[bool]:
        """For each of `pieces`: is any number of its whole matrix's gradient not 0? Collective over the
        group."""
        largest = gradient.new_zeros(len(self.shapes))
        places = torch.tensor([piece.matrix for piece in self.pieces], dtype=torch.int64)
        places = places.to(gradient.device)
        if self.pieces:
            parts = [piece.of_slice(gradient) for piece in self.pieces]
            largest[places] = torch.stack(torch._foreach_norm(parts, float("inf")))
        if self._has_cuts:
            dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self._group)
        answers: list[bool] = (largest[places] > 0).tolist()
        return answers

    def gather(self, flat: Tensor) -> dict[int, Tensor]:
        """The matrices that this rank owns, by number. Collective over the group."""
        matrices = {}
        for matrix, piece in self._owned.items():
            rows, columns = self.shapes[matrix]
            if piece.count == rows * columns:
                matrices[matrix] = piece.of_slice(flat).view(rows, columns)
            else:
                matrices[matrix] = flat.new_empty(rows, columns)
                piece.of_matrix(matrices[matrix]).copy_(piece.of_slice(flat))
        sent = [[piece.of_slice(flat) for piece in lent] for lent in self._lent]
        for piece, values in self._exchange(sent, self._borrowed, like=flat):
            piece.of_matrix(matrices[piece.matrix]).copy_(values)
        return matrices

    def scatter(self, matrices: Mapping[int, Tensor], flat: Tensor) -> None:
        """Write the pieces of this rank to `flat`, from the matrices that each rank owns. Collective over the
        group."""
        for matrix, piece in self._owned.items():
            piece.of_slice(flat).copy_(piece.of_matrix(matrices[matrix]))
        sent = [[piece.of_matrix(matrices[piece.matrix]) for piece in pieces] for pieces in self._borrowed]
        for piece, values in self._exchange(sent, self._lent, like=flat):
            piece.of_slice(flat).copy_(values)

    def _exchange(
        self, sent: Sequence[Sequence[Tensor]], expected: Sequence[Sequence[Piece]], *, like: Tensor
    ) -> list[tuple[Piece, Tensor]]:
        """Send tensors to each rank, and get one for each piece that is expected of a rank."""
        if not self._has_cuts:
            return []
        values = torch.cat([like.new_empty(0), *(tensor for tensors in sent for tensor in tensors)])
        pieces = [piece for of_rank in expected for piece in of_rank]
        answer = like.new_empty(sum(piece.count for piece in pieces))
        dist.all_to_all_single(
            answer,
            values,
            [sum(piece.count for piece in of_rank) for of_rank in expected],
            [sum(tensor.numel() for tensor in tensors) for tensors in sent],
            group=self._group,
        )
        return list(zip(pieces, answer.split([piece.count for piece in pieces]), strict=True))


def _cut(shapes: Sequence[tuple[int, int]], *, share: int, ranks: int) -> list[list[Piece]]:
    """The pieces of each rank of matrices that lie one after the other in a flat tensor."""
    pieces: list[list[Piece]] = [[] for _ in range(ranks)]
    begin = 0
    for matrix, (rows, columns) in enumerate(shapes):
        end = begin + rows * columns
        for rank in range(begin // share, (end - 1) // share + 1):
            first, last = max(begin, rank * share), min(end, (rank + 1) * share)
            pieces[rank].append(Piece(matrix, first - begin, first - rank * share, last - first))
        begin = end
    return pieces
