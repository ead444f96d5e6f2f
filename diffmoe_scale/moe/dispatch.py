"""Tokens to the ranks of their experts and back: Megatron's all-to-all dispatcher, also without CUDA."""

from contextlib import nullcontext

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from diffmoe_scale.moe.fused import FusedPermutation, RowBias
from diffmoe_scale.moe.permutation import Permutation
from diffmoe_scale.nn.all_to_all import Clock, all_to_all


class TokenDispatcher(MoEAlltoAllTokenDispatcher):
    """Megatron's dispatcher with three changes: it runs on CPU, where overrides stand in for code that names
    CUDA (on CUDA they call the parent), `expect_rows` lets one object take the static path of training and
    the dynamic one of threshold inference, and rows go to experts and back by a `Permutation`, without their
    gates: those are applied where the tokens are."""

    def __init__(
        self, *, local_experts: list[int], config: TransformerConfig, groups: ProcessGroupCollection
    ) -> None:
        if not torch.cuda.is_available():
            # megatron-core 0.16.1 makes a CUDA stream unless the class holds one; no method of this subclass
            # uses it on CPU.
            MoEAlltoAllTokenDispatcher.cuda_dtoh_stream = "no CUDA device"
        super().__init__(len(local_experts), local_experts, config, pg_collection=groups)
        self.is_cuda = False
        self.clock: Clock = nullcontext
        """Of the all-to-alls of rows, there and back."""

    def expect_rows(self, rows_per_expert: int | None, *, is_fused: bool) -> None:
        """Before each dispatch: every expert takes this many of every rank's tokens (even splits, known
        shapes, no exchange of counts and no wait for the device), or None where only the mask says.
        `is_fused` takes a `FusedPermutation`."""
        self.is_fused = is_fused
        self.drop_and_pad = rows_per_expert is not None
        self.capacity = rows_per_expert

    def preprocess(self, routing_map: Tensor) -> Tensor | None:
        """Rows of each local expert where they are not known before, and the splits of the two all-to-alls.
        Collective over the expert-parallel group."""
        self.is_cuda = routing_map.is_cuda
        if self.drop_and_pad:
            # The parent computes its own capacity, rounding up; DiffMoE rounds down.
            self.num_out_tokens = self.capacity * self.num_experts
            self.input_splits = self.output_splits = None
            return None
        if self.is_cuda:
            return super().preprocess(routing_map)
        rows_E = routing_map.sum(dim=0)
        self.num_out_tokens = int(rows_E.sum())
        rows_GE = rows_E.new_empty(self.ep_size, self.num_experts)
        if self.ep_size > 1:
            dist.all_gather_into_tensor(rows_GE.view(-1), rows_E, group=self.ep_group)
        else:
            rows_GE[0] = rows_E
        first = self.local_expert_indices[0]
        rows_Ge = rows_GE[:, first : first + self.num_local_experts].contiguous()
        self.input_splits = rows_E.view(self.ep_size, -1).sum(dim=1).tolist()
        self.output_splits = rows_Ge.sum(dim=1).tolist()
        self.num_global_tokens_per_local_expert = rows_Ge
        return rows_Ge.sum(dim=0)

    def dispatch_preprocess(self, hidden_states: Tensor, routing_map: Tensor) -> Tensor:
        """Rows [R, D] by expert, from tokens [S, D] and mask [S, E]. Collective over the expert-parallel
        group where rows are not known before."""
        rows_e = self.preprocess(routing_map)
        self.tokens_per_expert = self._maybe_dtoh_and_synchronize("before_permutation_1", rows_e)
        kind = FusedPermutation if self.is_fused else Permutation
        self.permutation = kind.of(routing_map, num_rows=int(self.num_out_tokens))
        return self.permutation.rows(hidden_states)

    def token_dispatch(self, rows_RD: Tensor) -> Tensor:
        """Rows to the ranks of their experts. Collective over the expert-parallel group."""
        self.tokens_per_expert = self._maybe_dtoh_and_synchronize(
            "before_ep_alltoall", self.tokens_per_expert
        )
        splits = self.output_splits, self.input_splits
        return all_to_all(rows_RD, self.ep_group, *splits, clock=self.clock)

    def dispatch_postprocess(self, rows_RD: Tensor) -> tuple[Tensor, list[int]]:
        """Rows by local expert, and the number of each. A rank without peers has that order already: the
        parent would copy every row to find it."""
        rows_e = self.tokens_per_expert
        if self.is_cuda or self.ep_size > 1:
            no_gates = rows_RD.new_empty(len(rows_RD), 0)
            rows_RD, rows_e, _ = super().dispatch_postprocess(rows_RD, no_gates)
        if self.drop_and_pad:
            # Numbers and no tensor: what knows shapes only (torch.compile, a CUDA graph) can go on from here.
            return rows_RD, [self.capacity * self.ep_size] * self.num_local_experts
        assert rows_e is not None, "without expect_rows the mask was counted"
        return rows_RD, rows_e.tolist()

    def combine_preprocess(self, rows_RD: Tensor) -> Tensor:
        """Rows by the rank of their tokens, from rows by local expert."""
        if self.is_cuda or self.ep_size > 1:
            return super().combine_preprocess(rows_RD)
        return rows_RD

    def token_combine(self, rows_RD: Tensor) -> Tensor:
        """Rows back to the ranks of their tokens. Collective over the expert-parallel group."""
        splits = self.input_splits, self.output_splits
        return all_to_all(rows_RD, self.ep_group, *splits, clock=self.clock)

    def combine_postprocess(self, rows_RD: Tensor, gate_SE: Tensor, bias: RowBias | None) -> Tensor:
        """Tokens [S, D], each the sum of its rows times their gates."""
        return self.permutation.combine(rows_RD, gate_SE, bias)

    def _maybe_dtoh_and_synchronize(
        self, point: str, tokens_per_expert: Tensor | None = None
    ) -> Tensor | None:
        if self.is_cuda:
            return super()._maybe_dtoh_and_synchronize(point, tokens_per_expert)
        return tokens_per_expert
