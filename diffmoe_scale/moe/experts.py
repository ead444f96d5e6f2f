"""The experts of a rank: Megatron's container, with grouped linears that need no Transformer Engine.

Letters beside the package's: R rows sorted by local expert.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.experts import TEGroupedMLP
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.moe.fused import RowBias, activate_rows
from diffmoe_scale.moe.grouped_linear import GroupedLinear, LoopLinear, grouped_linear, row_ends
from diffmoe_scale.nn.feed_forward import activate, initialize_feed_forward
from diffmoe_scale.nn.generator import named_generator


class Experts(TEGroupedMLP):
    """Megatron's container of a rank's experts. Its forward is ours: gates follow on the tokens' ranks, where
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

    def forward(
        self,
        rows_RD: Tensor,
        rows_per_expert: list[int],
        *,
        is_fused: bool = False,
        leaves_bias: bool = False,
    ) -> tuple[Tensor, RowBias | None]:
        """E_i(row) for rows sorted by local expert, of which `rows_per_expert` has the number.

        `is_fused` takes fewer kernels, if the linears can; `leaves_bias` lets it return the last bias instead
        of adding it."""
        is_gated = self.config.gated_linear_unit
        if is_fused and isinstance(self.linear_fc1, GroupedLinear) and len(rows_RD) > 0:
            return self._fused_forward(rows_RD, rows_per_expert, leaves_bias=leaves_bias)
        with self.precision():
            hidden_RF = activate(self.linear_fc1(rows_RD, rows_per_expert)[0], is_gated=is_gated)
            return self.linear_fc2(hidden_RF, rows_per_expert)[0], None

    def _fused_forward(
        self, rows_RD: Tensor, rows_per_expert: list[int], *, leaves_bias: bool
    ) -> tuple[Tensor, RowBias | None]:
        (weights, biases), (last_weights, last_biases) = (
            linear.expert_tensors() for linear in (self.linear_fc1, self.linear_fc2)
        )
        ends_e = row_ends(rows_per_expert, device=rows_RD.device)
        pre_RI = grouped_linear(rows_RD, rows_per_expert, ends_e, weights, [])
        hidden_RF = activate_rows(
            pre_RI, rows_per_expert, ends_e, biases, is_gated=self.config.gated_linear_unit
        )
        is_left = leaves_bias and bool(last_biases)
        y_RD = grouped_linear(
            hidden_RF, rows_per_expert, ends_e, last_weights, [] if is_left else last_biases
        )
        return y_RD, RowBias(last_biases, rows_per_expert, ends_e) if is_left else None

    def expert_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """`experts.<global index>.{w_in, b_in, w_out, b_out}` and parameter of every expert of this rank."""
        for linear, side in ((self.linear_fc1, "in"), (self.linear_fc2, "out")):
            for letter, tensors in zip("wb", linear.expert_tensors(), strict=True):
                for index, tensor in zip(self.local_experts, tensors, strict=False):
                    yield f"experts.{index}.{letter}_{side}", tensor


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
