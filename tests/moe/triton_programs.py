"""The fused operations by their Triton kernels in Triton's interpreter, beside plain torch: a program that
prints the largest difference of each, for TRITON_INTERPRET=1. The interpreter's bf16 is not a GPU's: fp32
only.
"""

import itertools

import torch
from torch import Tensor

from diffmoe_scale.moe import (
    fused_activation,
    fused_rows,
    fused_selection,
    fused_silu,
    selection,
    triton_kernels,
)
from diffmoe_scale.moe.fused import FusedPermutation
from diffmoe_scale.moe.grouped_linear import row_ends

TOKENS, EXPERTS, WIDTH = 37, 3, 20


class Comparison:
    """Calls an operation's two bodies and keeps the largest difference of their results."""

    def __init__(self) -> None:
        self.largest: dict[str, float] = {}

    def __call__(self, operation: torch.library.CustomOpDef, *arguments: object) -> None:
        got, expected = (operation._backend_fns[device](*arguments) for device in ("cuda", "cpu"))
        name = operation._name
        for a, b in zip(_tensors(got), _tensors(expected), strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype, name
            difference = (a.double() - b.double()).abs().max().item() if a.numel() else 0.0
            self.largest[name] = max(self.largest.get(name, 0.0), difference)


def compare_rows(compare: Comparison, share: float) -> None:
    mask_SE = torch.rand(TOKENS, EXPERTS) < share
    permutation = FusedPermutation.of(mask_SE, num_rows=int(mask_SE.sum()))
    place_ES = permutation.place_ES
    compare(fused_rows.gather_rows, torch.randn(TOKENS, WIDTH), place_ES, permutation.num_rows)
    rows_RD, grad_SD = torch.randn(permutation.num_rows, WIDTH), torch.randn(TOKENS, WIDTH)
    # Not contiguous: the kernel is given strides.
    gate_SE, bias_ED = torch.rand(EXPERTS, TOKENS).t(), torch.randn(EXPERTS, WIDTH)
    for gate, bias in itertools.product((None, gate_SE), (None, bias_ED)):
        compare(fused_rows.combine_rows, rows_RD, place_ES, gate, bias)
    for bias in (None, bias_ED):
        compare(fused_rows.combine_rows_backward, grad_SD, rows_RD, place_ES, gate_SE, bias)


def compare_activation(compare: Comparison, rows: list[int], width: int) -> None:
    ends_e = row_ends(rows, device=torch.device("cpu"))
    for is_gated in (False, True):
        pre_RI = 3 * torch.randn(sum(rows), width * (1 + is_gated))
        grad_RF = torch.randn(sum(rows), width)
        biases = (None,) if is_gated else (None, torch.randn(len(rows), width))
        for bias in biases:
            compare(fused_activation.bias_activation, pre_RI, bias, ends_e, max(rows), is_gated)
            compare(fused_activation.bias_activation_backward, grad_RF, pre_RI, bias, ends_e, is_gated)


def compare_selection(compare: Comparison, num_tokens: int, k: int) -> None:
    # Of few values, so that many are equal.
    scores_XP = torch.randint(0, 5, (EXPERTS, 2, num_tokens)).float()
    kth_X1 = selection.kth_largest(scores_XP, k).unsqueeze(-1)
    compare(fused_selection.select_from, scores_XP, kth_X1, k)


def _tensors(answer: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return answer if isinstance(answer, tuple) else (answer,)


def main() -> None:
    torch.manual_seed(0)
    compare = Comparison()
    for share in (0.0, 0.4, 1.0):
        compare_rows(compare, share)
    for rows, width in (([40, 0, 7], 72), ([33, 33], 64)):
        compare_activation(compare, rows, width)
    fused_selection.TOKENS = 16  # several turns of the kernel's loop
    for k in (1, 9, 40):
        compare_selection(compare, 40, k)
    compare(fused_silu.silu, torch.randn(5, 300))
    compare(fused_silu.silu_backward, torch.randn(5, 300), torch.randn(5, 300))
    assert triton_kernels.triton.knobs.runtime.interpret
    for name, largest in compare.largest.items():
        print(name, largest)


if __name__ == "__main__":
    main()
