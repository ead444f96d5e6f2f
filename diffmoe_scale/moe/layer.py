"""The mixture-of-experts layer: route, dispatch, experts, combine."""

from collections.abc import Iterator

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.moe_layer import BaseMoELayer
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.moe.dispatch import TokenDispatcher
from diffmoe_scale.moe.experts import build_experts
from diffmoe_scale.moe.router import RouterPlace
from diffmoe_scale.moe.routers.build import build_router
from diffmoe_scale.moe.routing import Routing, RoutingContext
from diffmoe_scale.nn.feed_forward import FeedForward
from diffmoe_scale.nn.generator import named_generator


class MoELayer(BaseMoELayer):
    """y_s = sum over the experts i that took token s of gate[s, i] * E_i(x_s) (DiffMoE eq. 7), plus the
    shared experts.

    A token that no expert took gets 0: the block's residual carries it. An expert's gradient is that of the
    sum of the losses of all ranks of the expert-parallel group; scaling it is the engine's.
    """

    def __init__(
        self,
        config: MoEConfig,
        *,
        width: int,
        layer_index: int,
        groups: ProcessGroupCollection,
        target_width: int = 0,
    ) -> None:
        """The layer of block `layer_index`, in fp32, in a network that puts out `target_width` numbers a
        token (0: by itself). Draws no weights: `initialize` does."""
        expert_parallel = 1 if groups.ep is None else groups.ep.size()
        if config.num_experts % expert_parallel != 0:
            raise ValueError(
                f"moe.num_experts is {config.num_experts} but parallel.expert_parallel is {expert_parallel}; "
                f"choose a multiple of {expert_parallel}"
            )
        megatron = megatron_config(config, width=width, expert_parallel=expert_parallel)
        super().__init__(megatron, layer_number=layer_index, pg_collection=groups)
        self.layer_index = layer_index
        self.fused, self.backend = config.fused, config.backend
        place = RouterPlace(
            megatron=megatron, groups=groups, layer_index=layer_index, target_width=target_width
        )
        self.router = build_router(config, place)
        self.token_dispatcher = TokenDispatcher(
            local_experts=self.local_expert_indices, config=megatron, groups=groups
        )
        self.experts = build_experts(
            config, megatron=megatron, local_experts=self.local_expert_indices, groups=groups
        )
        if config.shared_experts > 0:
            self.shared_experts = FeedForward(
                width,
                config.shared_experts * megatron.moe_ffn_hidden_size,
                is_gated=megatron.gated_linear_unit,
            )

    def initialize(self, seed: int) -> None:
        """Weights that depend on (seed, block, expert) only, not on the layout of ranks."""
        self.router.initialize(seed)
        self.experts.initialize(seed, layer_index=self.layer_index)
        if self.shared_experts is not None:
            self.shared_experts.initialize(named_generator(seed, self.layer_index, "shared"))

    def forward(self, x_SD: Tensor, context: RoutingContext) -> tuple[Tensor, Routing]:
        """Output [S, D] and the router's decision. Collective over the expert-parallel group, and the pool's
        in training."""
        routing = self.router(x_SD, context)
        dispatcher = self.token_dispatcher
        is_fused = self.is_fused(x_SD)
        dispatcher.expect_rows(routing.rows_per_expert, is_fused=is_fused)

        rows_RD = dispatcher.dispatch_preprocess(x_SD, routing.mask_SE)
        rows_RD = dispatcher.token_dispatch(rows_RD)
        rows_RD, rows_per_expert = dispatcher.dispatch_postprocess(rows_RD)

        # Only an expert's own rank has its bias.
        leaves_bias = is_fused and dispatcher.ep_size == 1
        rows_RD, bias = self.experts(rows_RD, rows_per_expert, is_fused=is_fused, leaves_bias=leaves_bias)

        rows_RD = dispatcher.combine_preprocess(rows_RD)
        rows_RD = dispatcher.token_combine(rows_RD)
        y_SD = dispatcher.combine_postprocess(rows_RD, routing.gate_SE, bias)

        if self.shared_experts is not None:
            y_SD = y_SD + self.shared_experts(x_SD)
        return y_SD, routing

    def is_fused(self, x_SD: Tensor) -> bool:
        """Whether the fused kernels do it, by `moe.fused`."""
        return self.fused == "on" or (self.fused == "auto" and x_SD.is_cuda and self.backend != "loop")

    def expert_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Canonical name (`experts.<global index>.w_in`, `.b_in`, `.w_out`, `.b_out`) and parameter of this
        rank's experts."""
        return self.experts.expert_parameters()


def single_rank_groups() -> ProcessGroupCollection:
    """The process groups of a layer without peers."""
    names = ("tp", "cp", "tp_cp", "tp_dp_cp", "ep", "expt_tp", "tp_ep", "expt_dp", "dp")
    return ProcessGroupCollection(**dict.fromkeys(names))


def megatron_config(config: MoEConfig, *, width: int, expert_parallel: int) -> TransformerConfig:
    """What Megatron's parts of the layer read; everything else stays at its default and is not used."""
    is_gated = config.activation == "swiglu"
    expert_width = round(config.expert_width_ratio * width)
    multiple = 8
    if expert_width < 1:
        raise ValueError(
            f"moe.expert_width_ratio is {config.expert_width_ratio}, which makes experts of model.width "
            f"{width} {expert_width} wide; choose at least {1 / width:.4g}"
        )
    if config.backend == "grouped" and (width % multiple or expert_width % multiple):
        raise ValueError(
            f"model.width is {width} and the expert width {expert_width} "
            f"(moe.expert_width_ratio {config.expert_width_ratio}); "
            f"moe.backend 'grouped' needs multiples of {multiple}: change them or set moe.backend to 'loop'"
        )
    return TransformerConfig(
        num_layers=1,
        hidden_size=width,
        num_attention_heads=1,
        num_moe_experts=config.num_experts,
        moe_ffn_hidden_size=expert_width,
        expert_model_parallel_size=expert_parallel,
        gated_linear_unit=is_gated,
        add_bias_linear=not is_gated,
        moe_router_load_balancing_type="none",
        # With a capacity the dispatcher does not expect tokens x top-k rows: experts choose.
        moe_expert_capacity_factor=config.capacity,
        moe_token_dispatcher_type="alltoall",
        # What ExpertRouter.gating does; without it Megatron warns of more than 32 experts.
        moe_router_dtype="fp32",
        perform_initialization=False,
        params_dtype=torch.float32,
    )
