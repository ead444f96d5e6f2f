"""The experts of a rank: Megatron's container, with grouped linears that need no Transformer Engine.

Letters beside the package's: R rows sorted by local expert.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any  # autograd's context object has no public type

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.experts import TEGroupedMLP
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.moe.grouped_linear import GroupedLinear, LoopLinear
from diffmoe_scale.nn.feed_forward import activate, initialize_feed_forward
from diffmoe_scale.nn.generator import named_generator


class Experts(TEGroupedMLP):
    """Megatron's container of a rank's experts. Its forward is ours: gates follow the second linear, where
    they are exact with biases and touch D instead of F values a row."""

    def __init__(
        self,
        megatron: TransformerConfig,
        *,
        linear: type[nn.Module],
        local_experts: list[int],
        groups: ProcessGroupCollection,
        precision: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        super().__init__(
            len(local_experts),
            megatron,
            MLPSubmodules(linear_fc1=linear, linear_fc2=linear),
            pg_collection=groups,
        )
        self.local_experts = local_experts
        self.precision = precision

    def initialize(self, seed: int, *, layer_index: int) -> None:
        """An expert's weights come from (seed, layer_index, its global index): the same in every layout."""
        tensors = dict(self.expert_parameters())
        for i in self.local_experts:
            biases = [
                tensors[name] for name in (f"experts.{i}.b_in", f"experts.{i}.b_out") if name in tensors
            ]
            initialize_feed_forward(
                tensors[f"experts.{i}.w_in"],
                tensors[f"experts.{i}.w_out"],
                biases,
                is_gated=self.config.gated_linear_unit,
                generator=named_generator(seed, layer_index, "experts", i),
            )

    def forward(self, rows_RD: Tensor, rows_per_expert: list[int], gate_R: Tensor) -> tuple[Tensor, None]:
        """gate * E_i(row) for rows sorted by local expert, of which `rows_per_expert` has the number."""
        is_gated = self.config.gated_linear_unit
        with self.precision():
            hidden_RF = activate(self.linear_fc1(rows_RD, rows_per_expert)[0], is_gated=is_gated)
            y_RD = self.linear_fc2(hidden_RF, rows_per_expert)[0]
        return _Gated.apply(y_RD, gate_R), None

    def expert_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """`experts.<global index>.{w_in, b_in, w_out, b_out}` and parameter of every expert of this rank."""
        for linear, side in ((self.linear_fc1, "in"), (self.linear_fc2, "out")):
            for letter, tensors in zip("wb", linear.expert_tensors(), strict=True):
                for index, tensor in zip(self.local_experts, tensors, strict=False):
                    yield f"experts.{index}.{letter}_{side}", tensor


class _Gated(torch.autograd.Function):
    """gate * y. The gate is fp32, and the product is rounded once, to the format of y; no fp32 tensor of its
    size is kept."""

    @staticmethod
    def forward(ctx: Any, y_RD: Tensor, gate_R: Tensor) -> Tensor:
        ctx.save_for_backward(y_RD, gate_R)
        return torch.mul(y_RD, gate_R.unsqueeze(1), out=torch.empty_like(y_RD))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (y_RD, gate_R), grad_RD = ctx.saved_tensors, grads[0]
        grad_y_RD = torch.mul(grad_RD, gate_R.unsqueeze(1), out=torch.empty_like(y_RD))
        return grad_y_RD, (grad_RD.to(gate_R.dtype) * y_RD).sum(dim=1)


def build_experts(
    config: MoEConfig,
    *,
    megatron: TransformerConfig,
    local_experts: list[int],
    groups: ProcessGroupCollection,
) -> Experts:
    """The experts `local_experts` of a layer with the backend that the config names."""
    match config.backend:
        case "loop":
            experts = Experts(megatron, linear=LoopLinear, local_experts=local_experts, groups=groups)
        case "grouped":
            experts = Experts(megatron, linear=GroupedLinear, local_experts=local_experts, groups=groups)
        case "transformer_engine":
            from diffmoe_scale.moe.transformer_engine import TransformerEngineLinear, precision_context

            precision = precision_context(config.precision)
            experts = Experts(
                megatron,
                linear=TransformerEngineLinear,
                local_experts=local_experts,
                groups=groups,
                precision=precision,
            )
    return experts
