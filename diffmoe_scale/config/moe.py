"""Settings of the mixture-of-experts layers."""

from dataclasses import dataclass
from typing import Annotated, Literal

from diffmoe_scale.config.check import require
from diffmoe_scale.config.routers import BY_TOKEN, GATES, RULES, WITH_POOL
from diffmoe_scale.config.section import FREE, Range, Section


@dataclass(frozen=True, kw_only=True)
class MoEConfig(Section, name="moe"):
    """The mixture-of-experts layers that replace the feed-forward network of some blocks."""

    num_experts: Annotated[int, Range(0, 4096)] = 8
    """Experts of a layer; 0 makes the model dense."""
    every: Annotated[int, Range(1, 1000)] = 2
    """An MoE layer in every n-th block: 2 gives blocks 1, 3, 5, ..."""
    first_dense: Annotated[int, Range(0, 1000)] = 0
    """The first k blocks are dense, whatever `moe.every` says."""
    router: Literal[
        "diffmoe",
        "expert_choice",
        "token_choice",
        "dsmoe",
        "expert_race",
        "expert_threshold",
        "promoe",
    ] = "diffmoe"
    """`diffmoe`: an expert takes the top K of a pool (DiffMoE eq. 6); `expert_choice`: of each sample
    (EC-DiT); `token_choice`: a token its top k; `dsmoe`: the same by sigmoid and a bias that balances loads
    (DSMoE); `expert_race`: the top K of all pairs of token and expert; `expert_threshold`: an expert what is
    over its threshold; `promoe`: a token the nearest prototypes, without a caption the last expert."""
    pool: Annotated[Literal["sample", "rank", "expert_parallel", "data_parallel"], FREE] = "rank"
    """Tokens that compete for one expert: those of a sample, of a rank's micro-batch, or of all ranks of a
    group. For routers `diffmoe`, `expert_race` and `expert_threshold`."""
    capacity: Annotated[float, Range(0, 4096, excludes_low=True), FREE] = 1.0
    """Average experts a token gets in training (C of DiffMoE eq. 6)."""
    capacity_start: Annotated[float, Range(0, 4096), FREE] = 0.0
    """Capacity of the first step, from where it goes to `moe.capacity` linearly (Nucleus-Image: 4 to 2); 0
    where `moe.capacity_steps` is 0."""
    capacity_steps: Annotated[int, Range(0, 10**9), FREE] = 0
    """Steps from `moe.capacity_start` to `moe.capacity`; 0 is one capacity throughout."""
    capacity_by_resolution: Annotated[
        tuple[tuple[int, float], ...], Range(0, 65_536, excludes_low=True), FREE
    ] = ()
    """Pairs of a resolution and the capacity of images with at most the pixels of its square, for stages of
    `buckets.resolutions` below `model.image_size`; larger images have `moe.capacity`."""
    top_k: Annotated[int, Range(1, 4096), FREE] = 1
    """Experts a token takes; for routers `token_choice`, `dsmoe` and `promoe`."""
    balance_weight: Annotated[float, Range(0, 1000), FREE] = 0.01
    """Weight of the load-balancing loss; for router `token_choice`."""
    bias_update_rate: Annotated[float, Range(0, 1), FREE] = 1e-3
    """Step of each expert's bias towards equal loads, per optimizer step; for router `dsmoe`. 0 balances
    nothing."""
    routed_scale: Annotated[float, Range(0, 1000, excludes_low=True)] = 2.0
    """Sum of the weights of a token's experts; for router `dsmoe`."""
    similarity_weight: Annotated[float, Range(0, 1000), FREE] = 0.01
    """Weight of the router similarity loss, averaged over layers; for router `expert_race`."""
    target_weight: Annotated[float, Range(0, 1000), FREE] = 0.1
    """Weight of the loss by which every layer's router predicts the network's target, averaged over layers;
    for router `expert_race`."""
    contrastive_weight: Annotated[float, Range(0, 1000), FREE] = 1.0
    """Weight of the contrastive loss of prototypes, averaged over layers (ProMoE adds layers up); for router
    `promoe`."""
    gate: Literal["softmax", "sigmoid", "identity"] = "softmax"
    """Function from router logits to what experts choose by and weigh their output with; `identity` is the
    logit itself (Expert Race)."""
    router_input: Literal["modulated", "decoupled"] = "modulated"
    """What the router reads: the token after adaLN modulation (DiffMoE), or timestep embedding and token
    before modulation (Nucleus-Image)."""
    shared_experts: Annotated[int, Range(0, 64)] = 0
    """Experts that every token passes through, as one network of that many times the expert width."""
    expert_width_ratio: Annotated[float, Range(0, 64, excludes_low=True)] = 4.0
    """Expert width over model width; below 4 gives fine-grained experts."""
    activation: Literal["gelu", "swiglu"] = "gelu"
    """Of experts and of the dense networks in other blocks: GELU(tanh) with biases, or SwiGLU without."""
    router_init_std: Annotated[float, Range(0, 100), FREE] = 0.006
    """Standard deviation of the router's initial weight."""
    predictor_weight: Annotated[float, Range(0, 1000), FREE] = 1.0
    """Weight of the capacity predictor's loss, averaged over layers (DiffMoE eq. 13)."""
    predictor_tokens: Annotated[float, Range(0, 1, excludes_low=True), FREE] = 1.0
    """Share of each sample's tokens that the capacity predictor learns from in training, evenly spread; 1 is
    the paper's. It changes the predictor and its cost only."""
    predictor_width: Annotated[float, Range(0, 8, excludes_low=True)] = 1.0
    """Width of the capacity predictor's hidden layer over `model.width`; 1 is the paper's, 0.25 costs a
    quarter."""
    threshold_decay: Annotated[float, Range(0, 1, excludes_high=True), FREE] = 0.95
    """Decay of the dynamic threshold's moving average, per optimizer step (DiffMoE eq. 17)."""
    threshold_warmup_steps: Annotated[int, Range(0, 10**9), FREE] = 0
    """First steps in which experts take the top K of the pool while their thresholds are learned; for router
    `expert_threshold`, whose thresholds decide from then on in training, too."""
    threshold_bias_correction: Annotated[bool, FREE] = True
    """Divide by 1 - decay^n, so that early thresholds are not biased towards 0; `false` is the reference
    implementation's."""
    backend: Annotated[Literal["loop", "grouped", "transformer_engine"], FREE] = "grouped"
    """Expert GEMMs: a plain loop (the specification), torch's grouped GEMM, or Transformer Engine's."""
    precision: Annotated[Literal["model", "fp8_delayed", "fp8_current", "fp8_block"], FREE] = "model"
    """Number format of the expert GEMMs; `fp8_*` needs backend `transformer_engine`."""

    fused: Annotated[Literal["auto", "on", "off"], FREE] = "auto"
    """Bias and activation, rows of experts and the weighted sum of a token's rows as one operation each, with
    kernels of this package's own on a GPU: `auto` on a GPU only. The same to round-off."""

    @property
    def rules(self) -> tuple[str, ...]:
        """Values of `sampling.selection` that the router has."""
        return RULES[self.router]

    @property
    def has_predictor(self) -> bool:
        return self.num_experts > 0 and self.router == "diffmoe"

    @property
    def has_thresholds(self) -> bool:
        """Whether experts can be left to choose by thresholds alone, which decide how many work."""
        return self.num_experts > 0 and "threshold" in self.rules

    @property
    def experts_a_token(self) -> float:
        """Of an average token, in training."""
        return float(self.top_k) if self.router in BY_TOKEN else self.capacity

    def blocks(self, depth: int) -> list[int]:
        """Those with experts, of a network of so many: every `every`-th behind the first `first_dense`."""
        turns = range(self.every - 1, depth, self.every) if self.num_experts else ()
        return [block for block in turns if block >= self.first_dense]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.num_experts == 0 or self.capacity <= self.num_experts,
            "moe.capacity",
            self.capacity,
            f"at most moe.num_experts ({self.num_experts})",
        )
        require(
            self.capacity_steps == 0 or self.router not in BY_TOKEN,
            "moe.capacity_steps",
            self.capacity_steps,
            f"0 for moe.router {self.router!r}",
        )
        self._check_capacity_by_resolution()
        self._check_backend()
        require(
            0 < self.capacity_start <= self.num_experts if self.capacity_steps else self.capacity_start == 0,
            "moe.capacity_start",
            self.capacity_start,
            f"above 0 and at most moe.num_experts ({self.num_experts}) exactly when moe.capacity_steps is "
            "set",
        )
        require(
            self.num_experts == 0 or 1 <= self.top_k <= self.num_experts,
            "moe.top_k",
            self.top_k,
            f"1 to moe.num_experts ({self.num_experts})",
        )
        require(
            self.pool == "rank" or self.router in WITH_POOL,
            "moe.pool",
            self.pool,
            f"'rank' unless moe.router is one of {', '.join(WITH_POOL)} (expert_choice pools a sample)",
        )
        if self.num_experts:
            self._check_router()
        require(
            self.predictor_width == 1 or self.router == "diffmoe",
            "moe.predictor_width",
            self.predictor_width,
            f"1 for moe.router {self.router!r}, which has no capacity predictor",
        )
        require(
            self.first_dense == 0 or (self.num_experts > 0 and self.first_dense >= self.every),
            "moe.first_dense",
            self.first_dense,
            f"0, or at least moe.every ({self.every}) in a model with experts: the blocks before have none",
        )

    def _check_backend(self) -> None:
        require(
            self.precision == "model" or self.backend == "transformer_engine",
            "moe.precision",
            self.precision,
            "'model' unless moe.backend is 'transformer_engine'",
        )
        require(
            self.fused != "on" or self.backend != "loop",
            "moe.fused",
            self.fused,
            "'auto' or 'off' for moe.backend 'loop', the plain specification",
        )

    def _check_router(self) -> None:
        gates = GATES.get(self.router, (self.gate,))
        require(
            self.gate in gates,
            "moe.gate",
            self.gate,
            f"{' or '.join(map(repr, gates))} for moe.router {self.router!r}",
        )
        require(
            self.router_input == "modulated" or self.router not in ("expert_race", "promoe"),
            "moe.router_input",
            self.router_input,
            f"'modulated' for moe.router {self.router!r}",
        )
        require(
            self.router != "promoe" or self.top_k < self.num_experts,
            "moe.top_k",
            self.top_k,
            f"1 to moe.num_experts - 1 ({self.num_experts - 1}) for moe.router 'promoe', whose last expert "
            "is for tokens without a caption",
        )

    def _check_capacity_by_resolution(self) -> None:
        pairs = self.capacity_by_resolution
        resolutions = [resolution for resolution, _ in pairs]
        require(
            resolutions == sorted(set(resolutions)),
            "moe.capacity_by_resolution",
            pairs,
            "resolutions that rise, for example [[256, 1.5], [512, 1.0]]",
        )
        require(
            not pairs or self.router not in BY_TOKEN,
            "moe.capacity_by_resolution",
            pairs,
            f"an empty list for moe.router {self.router!r}, whose tokens take moe.top_k experts",
        )
        require(
            all(capacity <= self.num_experts for _, capacity in pairs),
            "moe.capacity_by_resolution",
            pairs,
            f"capacities of at most moe.num_experts ({self.num_experts})",
        )
