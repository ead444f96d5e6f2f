"""Experts at inference, on one device.

S tokens of all samples, D width, E experts, R rows sorted by expert, I and O inner and outer width of a
linear map.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffmoe_scale.convert.shipped.routers import ExpertSettings, Router, RouterInput
from diffmoe_scale.nn.feed_forward import FeedForward, activate

GROUPED_ALIGNMENT_BYTES = 16


class StackedLinear(nn.Module):
    """A linear map for each expert, all in one tensor: [E, O, I], and biases [E, O]."""

    def __init__(self, num_experts: int, inner: int, outer: int, *, has_bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_experts, outer, inner))
        self.bias = nn.Parameter(torch.zeros(num_experts, outer)) if has_bias else None

    def forward(self, x_RI: Tensor, counts: list[int]) -> Tensor:
        linear = grouped_linear if can_group(x_RI, self.weight) else loop_linear
        return linear(x_RI, self.weight, self.bias, counts)


class StackedExperts(nn.Module):
    """All experts at once; the inner width is doubled for SwiGLU."""

    def __init__(self, settings: ExpertSettings, width: int, *, is_gated: bool) -> None:
        super().__init__()
        self.is_gated, has_bias = is_gated, not is_gated
        count, inner = settings.num_experts, settings.width
        self.w_in = StackedLinear(count, width, 2 * inner if is_gated else inner, has_bias=has_bias)
        self.w_out = StackedLinear(count, inner, width, has_bias=has_bias)

    def forward(self, rows_RD: Tensor, counts: list[int]) -> Tensor:
        y_RD: Tensor = self.w_out(activate(self.w_in(rows_RD, counts), is_gated=self.is_gated), counts)
        return y_RD


def can_group(x_RI: Tensor, weight_EOI: Tensor) -> bool:
    """Whether torch's grouped GEMM computes this: bf16 on CUDA, with rows of whole 16 bytes."""
    sides = weight_EOI.shape[1:]
    is_aligned = all(side * weight_EOI.element_size() % GROUPED_ALIGNMENT_BYTES == 0 for side in sides)
    return x_RI.is_cuda and x_RI.dtype == torch.bfloat16 and is_aligned and len(x_RI) > 0


def loop_linear(x_RI: Tensor, weight_EOI: Tensor, bias_EO: Tensor | None, counts: list[int]) -> Tensor:
    """Each expert's linear map of its own rows."""
    biases = [None] * len(counts) if bias_EO is None else list(bias_EO)
    parts = zip(x_RI.split(counts), weight_EOI, biases, strict=True)
    return torch.cat([F.linear(x, weight_OI, bias_O) for x, weight_OI, bias_O in parts])


def grouped_linear(x_RI: Tensor, weight_EOI: Tensor, bias_EO: Tensor | None, counts: list[int]) -> Tensor:
    """The same by one kernel."""
    counts_E = torch.tensor(counts, device=x_RI.device)
    ends_E = counts_E.cumsum(0).to(torch.int32)
    y_RO = F.grouped_mm(x_RI, weight_EOI.transpose(1, 2), offs=ends_E)
    return y_RO if bias_EO is None else y_RO + bias_EO.repeat_interleave(counts_E, dim=0)


class SeparateExperts(nn.ModuleList):
    """Linear layers of their own for every expert: what quantizers look for."""

    def __init__(self, settings: ExpertSettings, width: int, *, is_gated: bool) -> None:
        super().__init__(
            FeedForward(width, settings.width, is_gated=is_gated) for _ in range(settings.num_experts)
        )

    def forward(self, rows_RD: Tensor, counts: list[int]) -> Tensor:
        return torch.cat([expert(rows) for expert, rows in zip(self, rows_RD.split(counts), strict=True)])


class ExpertLayer(nn.Module):
    """y_s = sum over the experts i that took token s of gate[s, i] * E_i(x_s) (DiffMoE eq. 7), plus the
    shared experts. A token that no expert took gets 0."""

    def __init__(self, settings: ExpertSettings, width: int, *, number: int, is_gated: bool) -> None:
        super().__init__()
        self.router = Router(settings, width, number=number)
        kind = SeparateExperts if settings.layout == "separate" else StackedExperts
        self.experts = kind(settings, width, is_gated=is_gated)
        self.shared_experts = (
            FeedForward(width, settings.shared_width, is_gated=is_gated) if settings.shared_width else None
        )

    def forward(self, x_SD: Tensor, inputs: RouterInput) -> Tensor:
        mask_SE, scores_SE = self.router(x_SD, inputs)
        expert_R, token_R = mask_SE.t().nonzero(as_tuple=True)
        rows_RD = self.experts(x_SD[token_R], mask_SE.sum(dim=0).tolist())
        # The gate is fp32: the product is rounded once, to the format of the model.
        rows_RD = (rows_RD * scores_SE[token_R, expert_R, None]).to(x_SD.dtype)
        y_SD = torch.zeros_like(x_SD).index_add(0, token_R, rows_RD)
        return y_SD if self.shared_experts is None else y_SD + self.shared_experts(x_SD)
