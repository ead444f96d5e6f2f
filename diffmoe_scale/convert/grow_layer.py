"""The tensors of all layers with experts, by a plan.

D width, E experts, H the hidden width of a predictor.
"""

import torch

from diffmoe_scale.checkpoint.tensor_file import LazyTensor
from diffmoe_scale.config.schema import Config
from diffmoe_scale.convert.grow_experts import (
    Network,
    State,
    dense_network,
    expert_network,
    join_pieces,
    mean_network,
    mean_rows,
    put_dense,
    put_expert,
    repeat_rows,
)
from diffmoe_scale.convert.upcycle_plan import Plan
from diffmoe_scale.moe.predictor import CapacityPredictor, predictor_hidden_width
from diffmoe_scale.nn.generator import named_generator

TINY = 1e-5
"""Of the logits of a router whose gates are all but equal."""
ROWS = (
    "router.weight",
    "router.time_weight",
    "router.predictor.output.weight",
    "router.predictor.output.bias",
)
BUFFER = "router.predictor.expert_threshold_E"


class Layers:
    """Makes the layers of `after` of those of `before`, which differ in their experts only."""

    def __init__(self, before: Config, after: Config, plan: Plan, noise: float) -> None:
        self.before = before
        self.after = after
        self.plan = plan
        self.noise = noise
        self.is_gated = after.moe.activation == "swiglu"

    def weights(self, tensors: State) -> State:
        """Of one family. Random numbers depend on block and expert only: all families have the same."""
        if self.plan.kind == "same":
            return tensors
        grown = dict(tensors)
        for block in (self.after if self.after.moe.num_experts else self.before).expert_blocks:
            start = f"transformer.blocks.{block}.feed_forward."
            held = {name: grown.pop(name) for name in list(grown) if name.startswith(start)}
            match self.plan.kind:
                case "shared" | "copies":
                    grown |= self._of_dense(held, start, block)
                case "repeat" | "mean":
                    grown |= self._of_number(held, start, block)
                case "dense":
                    grown |= put_dense(start, self._dense(held, start))
        return grown

    def buffers(self, tensors: State) -> State:
        """Thresholds: those of copies and means are the originals'; new ones are 0."""
        experts, kind = self.after.moe.num_experts, self.plan.kind
        if kind == "same":
            return tensors
        if kind == "repeat":
            return {n: repeat_rows(t, experts) if n.endswith(BUFFER) else t for n, t in tensors.items()}
        if kind == "mean":
            return {n: mean_rows(t, experts) if n.endswith(BUFFER) else t for n, t in tensors.items()}
        if kind == "dense" or self.after.moe.router != "diffmoe":
            return {}
        grown: State = {}
        for block in self.after.expert_blocks:
            start = f"transformer.blocks.{block}.feed_forward.router.predictor."
            grown[f"{start}expert_threshold_E"] = LazyTensor.of(torch.zeros(experts))
            grown[f"{start}threshold_steps"] = LazyTensor.of(torch.zeros((), dtype=torch.int64))
        return grown

    def _of_dense(self, held: State, start: str, block: int) -> State:
        dense = dense_network(held, start, is_gated=self.is_gated)
        grown = put_dense(f"{start}shared_experts.", dense) if self.plan.kind == "shared" else {}
        for expert in range(self.after.moe.num_experts):
            piece = dense.piece(expert % self.plan.pieces, self.plan.pieces)
            network = piece.noisy(self.noise, "upcycle", block, expert).scaled(self.plan.scale)
            grown |= put_expert(start, expert, network)
        return grown | self._router(start, block)

    def _router(self, start: str, block: int) -> State:
        """Drawn as in a new model; so small that gates are equal where the first answer stands on it, and
        then one row for all pieces of a copy, which are taken together."""
        moe, width = self.after.moe, self.after.model.width
        is_tiny, pieces = self.plan.is_router_tiny, self.plan.pieces
        std = TINY * width**-0.5 if is_tiny else moe.router_init_std
        generator = named_generator(0, "upcycle", block, "router")
        state: State = {}
        names = ["weight"] + ["time_weight"] * (moe.router_input == "decoupled")
        for name in names:
            rows = moe.num_experts // pieces if is_tiny else moe.num_experts
            weight_ED = std * torch.randn(rows, width, generator=generator)
            if is_tiny:
                weight_ED = weight_ED.repeat_interleave(pieces, dim=0)
            state[f"{start}router.{name}"] = LazyTensor.of(weight_ED)
        if moe.router == "diffmoe":
            predictor = CapacityPredictor(
                width=width,
                hidden_width=predictor_hidden_width(width, moe.predictor_width),
                num_experts=moe.num_experts,
                decay=moe.threshold_decay,
                is_bias_corrected=moe.threshold_bias_correction,
            )
            predictor.initialize(named_generator(0, "upcycle", block, "predictor"))
            for name, parameter in predictor.named_parameters():
                state[f"{start}router.predictor.{name}"] = LazyTensor.of(parameter.detach())
        return state

    def _of_number(self, held: State, start: str, block: int) -> State:
        old, new = self.before.moe.num_experts, self.after.moe.num_experts
        grown = {name: tensor for name, tensor in held.items() if ".experts." not in name}
        for row in ROWS:
            name = start + row
            if name not in held:
                continue
            if new > old:
                spread = TINY if self.plan.is_router_tiny else 0.0
                grown[name] = repeat_rows(held[name], new, spread=spread, name=name)
            else:
                grown[name] = mean_rows(held[name], new)
        old_experts = [expert_network(held, start, e, is_gated=self.is_gated) for e in range(old)]
        for expert in range(new):
            if new > old:
                network = old_experts[expert % old]
                if expert >= old:
                    network = network.noisy(self.noise, "upcycle", block, expert)
            else:
                network = mean_network(old_experts[expert::new])
            grown |= put_expert(start, expert, network.scaled(self.plan.scale))
        return grown

    def _dense(self, held: State, start: str) -> Network:
        moe, pieces = self.before.moe, self.plan.pieces
        if moe.shared_experts:
            return dense_network(held, f"{start}shared_experts.", is_gated=self.is_gated)
        experts = [expert_network(held, start, e, is_gated=self.is_gated) for e in range(moe.num_experts)]
        means = [mean_network(experts[piece::pieces]) for piece in range(pieces)]
        return join_pieces(means).scaled(self.plan.scale)
