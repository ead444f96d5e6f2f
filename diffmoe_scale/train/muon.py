"""Muon for the matrices of hidden layers, AdamW for the rest (Keller Jordan 2024, arXiv 2502.16982).

The momentum of a matrix is made orthogonal before it is applied: all its singular values near 1.
"""

from collections.abc import Mapping
from typing import Any  # an optimizer's groups

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import AdamW

from diffmoe_scale.config.optimizer import OptimizerConfig
from diffmoe_scale.nn.number_formats import NUMBER_FORMATS
from diffmoe_scale.train.muon_shares import MatrixShares

MOMENTUM = "momentum"
ITERATIONS = 5
COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Of the odd polynomial of each iteration: five of them map singular values in [0.003, 1] to [0.68, 1.20]."""
MOST_AT_ONCE = 2**26
"""Elements that are orthogonalized together."""
SMALLEST = 1e-37


class Muon(AdamW):
    """Groups with `stacks` (a `model.matrices.Stack` for each parameter) are Muon's, others AdamW's.

    For DeepSpeed's ZeRO optimizer, which gives a step one group after the other, each as a flat slice of its
    parameters. Not to be taken for DeepSpeed's own Muon: that knows its parameters by a mark `use_muon`, and
    counts their orthogonal updates as gradients in the norm.
    """

    def __init__(
        self,
        groups: list[dict[str, object]],
        config: OptimizerConfig,
        *,
        device: torch.device,
        dp_group: dist.ProcessGroup,
        expert_dp_group: dist.ProcessGroup,
    ) -> None:
        """Slices are of the ranks of `dp_group`; of `expert_dp_group` in groups marked `moe`. Matrices are
        orthogonalized on `device`."""
        betas = (config.beta1, config.beta2)
        super().__init__(groups, fused=True, lr=config.learning_rate, betas=betas, eps=config.eps)
        self._config, self._device = config, device
        self._group_of = {False: dp_group, True: expert_dp_group}
        self._shares: dict[Tensor, MatrixShares] = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nobody gives a closure
        """Collective over the groups' ranks."""
        groups = self.param_groups
        for group in groups:
            if "stacks" in group:
                self._step_matrices(group)
            else:
                self.param_groups = [group]
                super().step()
        self.param_groups = groups

    def _step_matrices(self, group: Mapping[str, Any]) -> None:
        """m <- mu m + g; W <- (1 - lr wd) W - lr scale O(g + mu m), for the matrices that have a gradient.

        One without, as of an expert that took no token, stays where it is: the length of its old momentum
        would not show how long ago it was fed.
        """
        (master,) = group["params"]
        shares = self._shares_of(master, group)
        gradient, momentum = master.grad, self.momentum(master)
        are_fed = shares.are_fed(gradient.to(self._device))
        momentum.mul_(self._config.muon_momentum).add_(gradient)
        update = gradient.add_(momentum, alpha=self._config.muon_momentum).to(self._device)
        matrices = orthogonalize(shares.gather(update), NUMBER_FORMATS[self._config.muon_precision])
        for matrix in matrices.values():
            matrix.mul_(update_scale(*matrix.shape, rule=self._config.muon_scale))
        shares.scatter(matrices, update)
        fed = [piece for piece, is_fed in zip(shares.pieces, are_fed, strict=True) if is_fed]
        if fed:
            update = update.to(master.device)
            weights = [piece.of_slice(master) for piece in fed]
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights, [piece.of_slice(update) for piece in fed], alpha=-group["lr"])

    def momentum(self, master: Tensor) -> Tensor:
        """Of a flat slice of matrices; zeros before the first step."""
        state: dict[str, Tensor] = self.state[master]
        if MOMENTUM not in state:
            state[MOMENTUM] = torch.zeros_like(master)
        return state[MOMENTUM]

    def _shares_of(self, master: Tensor, group: Mapping[str, Any]) -> MatrixShares:
        if master not in self._shares:
            ranks = self._group_of[bool(group.get("moe"))]
            self._shares[master] = MatrixShares(group["stacks"], share=master.numel(), group=ranks)
        return self._shares[master]


def update_scale(rows: int, columns: int, *, rule: str) -> float:
    """What an orthogonal update [rows, columns] is multiplied by.

    `rms`: its numbers are then of root mean square 0.2, about AdamW's, for every shape (Moonlight, arXiv
    2502.16982 eq. 4). `spectral`: it then moves a layer's output by the same root mean square at every width,
    for inputs of the same (arXiv 2310.17813).
    """
    match rule:
        case "rms":
            return 0.2 * float(max(rows, columns)) ** 0.5
        case "spectral":
            return float(rows / columns) ** 0.5
    raise AssertionError(rule)


def orthogonalize(matrices: Mapping[int, Tensor], precision: torch.dtype) -> dict[int, Tensor]:
    """The orthogonal matrix nearest to each, roughly, in fp32: those of a shape at once, lying on their long
    side."""
    by_shape: dict[tuple[int, int], list[int]] = {}
    for number, matrix in matrices.items():
        by_shape.setdefault((min(matrix.shape), max(matrix.shape)), []).append(number)
    answers: dict[int, Tensor] = {}
    for (short, long), numbers in by_shape.items():
        at_once = max(1, MOST_AT_ONCE // (short * long))
        for first in range(0, len(numbers), at_once):
            some = numbers[first : first + at_once]
            lying = torch.stack([_lay(matrices[number]) for number in some])
            results = newton_schulz(lying, precision)
            answers |= {
                number: _turn_back(matrices[number], x) for number, x in zip(some, results, strict=True)
            }
    return answers


def newton_schulz(matrices: Tensor, precision: torch.dtype) -> Tensor:
    """[n, rows, columns] with rows <= columns, of any length, to about orthogonal ones in fp32; a matrix of
    zeros stays one."""
    a, b, c = COEFFICIENTS
    # Twice, so that squares of tiny gradients do not vanish.
    x = matrices / matrices.abs().amax(dim=(1, 2), keepdim=True).clamp_min(SMALLEST)
    x = (x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp_min(1)).to(precision)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.float()


def _lay(matrix: Tensor) -> Tensor:
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix


def _turn_back(matrix: Tensor, lying: Tensor) -> Tensor:
    return lying.mT.contiguous() if matrix.shape[0] > matrix.shape[1] else lying
