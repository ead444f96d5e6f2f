"""Settings of the mixture-of-experts layers."""

from dataclasses import dataclass
from typing import Literal

from diffmoe_scale.config.check import require


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """The mixture-of-experts layers that replace the feed-forward network of some blocks."""

    num_experts: int = 8
    """Experts of a layer; 0 makes the model dense."""
    every: int = 2
    """An MoE layer in every n-th block: 2 gives blocks 1, 3, 5, ..."""
    router: Literal["diffmoe", "expert_choice", "token_choice"] = "diffmoe"
    """`diffmoe`: an expert takes the top K of a pool (DiffMoE eq. 6); `expert_choice`: of each sample
    (EC-DiT); `token_choice`: a token its top k."""
    pool: Literal["sample", "rank", "expert_parallel", "data_parallel"] = "rank"
    """Tokens that compete for one expert: those of a sample, of a rank's micro-batch, or of all ranks of a
    group. For router `diffmoe`."""
    capacity: float = 1.0
    """Average experts a token gets in training (C of DiffMoE eq. 6)."""
    capacity_start: float = 0.0
    """Capacity of the first step, from where it goes to `moe.capacity` linearly (Nucleus-Image: 4 to 2); 0
    where `moe.capacity_steps` is 0."""
    capacity_steps: int = 0
    """Steps from `moe.capacity_start` to `moe.capacity`; 0 is one capacity throughout."""
    top_k: int = 1
    """Experts a token takes; for router `token_choice`."""
    balance_weight: float = 0.01
    """Weight of the load-balancing loss; for router `token_choice`."""
    gate: Literal["softmax", "sigmoid", "identity"] = "softmax"
    """Function from router logits to what experts choose by and weigh their output with; `identity` is the
    logit itself (Expert Race)."""
    router_input: Literal["modulated", "decoupled"] = "modulated"
    """What the router reads: the token after adaLN modulation (DiffMoE), or timestep embedding and token
    before modulation (Nucleus-Image)."""
    shared_experts: int = 0
    """Experts that every token passes through, as one network of that many times the expert width."""
    expert_width_ratio: float = 4.0
    """Expert width over model width; below 4 gives fine-grained experts."""
    activation: Literal["gelu", "swiglu"] = "gelu"
    """Of experts, and of the dense networks in the other blocks: GELU(tanh) with biases, or SwiGLU without."""
    router_init_std: float = 0.006
    """Standard deviation of the router's initial weight."""
    predictor_weight: float = 1.0
    """Weight of the capacity predictor's loss, averaged over layers (DiffMoE eq. 13)."""
    threshold_decay: float = 0.95
    """Decay of the dynamic threshold's moving average, per optimizer step (DiffMoE eq. 17)."""
    threshold_bias_correction: bool = True
    """Divide by 1 - decay^n, so that early thresholds are not biased towards 0; `false` is the reference
    implementation's."""
    backend: Literal["loop", "grouped", "transformer_engine"] = "grouped"
    """Expert GEMMs: a plain loop (the specification), torch's grouped GEMM, or Transformer Engine's."""
    precision: Literal["model", "fp8_delayed", "fp8_current", "fp8_block"] = "model"
    """Number format of the expert GEMMs; `fp8_*` needs backend `transformer_engine`."""

    def __post_init__(self) -> None:
        require(self.num_experts >= 0, "moe.num_experts", self.num_experts, "0 (dense) or more")
        require(self.every >= 1, "moe.every", self.every, "at least 1")
        require(self.shared_experts >= 0, "moe.shared_experts", self.shared_experts, "0 (none) or more")
        require(self.expert_width_ratio > 0, "moe.expert_width_ratio", self.expert_width_ratio, "above 0")
        require(self.predictor_weight >= 0, "moe.predictor_weight", self.predictor_weight, "0 or more")
        require(self.capacity > 0, "moe.capacity", self.capacity, "above 0")
        require(
            self.num_experts == 0 or self.capacity <= self.num_experts,
            "moe.capacity",
            self.capacity,
            f"at most moe.num_experts ({self.num_experts})",
        )
        require(
            self.capacity_steps >= 0, "moe.capacity_steps", self.capacity_steps, "0 (no schedule) or more"
        )
        require(
            self.capacity_steps == 0 or self.router != "token_choice",
            "moe.capacity_steps",
            self.capacity_steps,
            "0 for moe.router 'token_choice'",
        )
        require(
            0 < self.capacity_start <= self.num_experts if self.capacity_steps else self.capacity_start == 0,
            "moe.capacity_start",
            self.capacity_start,
            f"above 0 and at most moe.num_experts ({self.num_experts}) exactly when moe.capacity_steps is set",
        )
        require(
            self.num_experts == 0 or 1 <= self.top_k <= self.num_experts,
            "moe.top_k",
            self.top_k,
            f"1 to moe.num_experts ({self.num_experts})",
        )
        require(0 <= self.threshold_decay < 1, "moe.threshold_decay", self.threshold_decay, "in [0, 1)")
        require(
            self.pool == "rank" or self.router == "diffmoe",
            "moe.pool",
            self.pool,
            "'rank' unless moe.router is 'diffmoe' (expert_choice always pools a sample)",
        )
        require(
            self.precision == "model" or self.backend == "transformer_engine",
            "moe.precision",
            self.precision,
            "'model' unless moe.backend is 'transformer_engine'",
        )
