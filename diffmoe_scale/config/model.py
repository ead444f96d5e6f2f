"""Settings of the network: text, autoencoder, transformer, mixture of experts, diffusion."""

from dataclasses import dataclass
from typing import Literal

from diffmoe_scale.config.check import require


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Where the network's input lives: pixels, or the latents of a pretrained autoencoder."""

    kind: Literal["pixels", "kl"] = "pixels"
    """`pixels`: images in [-1, 1] as they are; `kl`: diffusers' AutoencoderKL."""
    path: str = ""
    """Folder with `config.json` and safetensors weights; for `kl` only."""

    def __post_init__(self) -> None:
        require((self.kind == "kl") == bool(self.path), "autoencoder.path", self.path, "a folder exactly when autoencoder.kind is 'kl'")


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How captions become features."""

    kind: Literal["sentencepiece", "open_clip"] = "sentencepiece"
    """`sentencepiece`: a tokenizer and a small encoder trained along; `open_clip`: a frozen text tower."""
    vocabulary: int = 512
    """Pieces of the sentencepiece model (an upper limit: small caption sets give fewer)."""
    max_tokens: int = 24
    """Tokens a caption, end token included; longer captions are cut and counted."""
    width: int = 128
    """Width of the trained encoder."""
    depth: int = 2
    """Blocks of the trained encoder."""
    heads: int = 4
    """Attention heads of the trained encoder."""
    open_clip_name: str = "ViT-L-14"
    """Architecture name known to open_clip."""
    open_clip_weights: str = ""
    """Local weight file or `local-dir:` folder; for `open_clip` only."""

    def __post_init__(self) -> None:
        require(self.max_tokens >= 2, "text.max_tokens", self.max_tokens, "at least 2")
        for name in ("width", "depth", "heads"):
            require(getattr(self, name) >= 1, f"text.{name}", getattr(self, name), "at least 1")
        require(self.width % self.heads == 0, "text.width", self.width, f"a multiple of text.heads ({self.heads})")
        require(
            (self.kind == "open_clip") == bool(self.open_clip_weights),
            "text.open_clip_weights",
            self.open_clip_weights,
            "a local file or folder exactly when text.kind is 'open_clip'",
        )


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """The mixture-of-experts layers that replace the feed-forward network of some blocks."""

    num_experts: int = 8
    """Experts of a layer; 0 makes the model dense."""
    every: int = 2
    """An MoE layer in every n-th block: 2 gives blocks 1, 3, 5, ..."""
    router: Literal["diffmoe", "expert_choice", "token_choice"] = "diffmoe"
    """`diffmoe`: an expert takes the top K of a pool (DiffMoE eq. 6); `expert_choice`: of each sample (EC-DiT); `token_choice`: a token its top k."""
    pool: Literal["sample", "rank", "expert_parallel", "data_parallel"] = "rank"
    """Tokens that compete for one expert: those of a sample, of a rank's micro-batch, or of all ranks of a group. For router `diffmoe`."""
    capacity: float = 1.0
    """Average experts a token gets in training (C of DiffMoE eq. 6)."""
    capacity_start: float = 0.0
    """Capacity of the first step, from where it goes to `moe.capacity` linearly (Nucleus-Image: 4 to 2); 0 where `moe.capacity_steps` is 0."""
    capacity_steps: int = 0
    """Steps from `moe.capacity_start` to `moe.capacity`; 0 is one capacity throughout."""
    top_k: int = 1
    """Experts a token takes; for router `token_choice`."""
    balance_weight: float = 0.01
    """Weight of the load-balancing loss; for router `token_choice`."""
    gate: Literal["softmax", "sigmoid", "identity"] = "softmax"
    """Function from router logits to what experts choose by and weigh their output with; `identity` is the logit itself (Expert Race)."""
    router_input: Literal["modulated", "decoupled"] = "modulated"
    """What the router reads: the token after adaLN modulation (DiffMoE), or timestep embedding and token before modulation (Nucleus-Image)."""
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
    """Divide by 1 - decay^n, so that early thresholds are not biased towards 0; `false` is the reference implementation's."""
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
            self.num_experts == 0 or self.capacity <= self.num_experts, "moe.capacity", self.capacity, f"at most moe.num_experts ({self.num_experts})"
        )
        require(self.capacity_steps >= 0, "moe.capacity_steps", self.capacity_steps, "0 (no schedule) or more")
        require(
            self.capacity_steps == 0 or self.router != "token_choice", "moe.capacity_steps", self.capacity_steps, "0 for moe.router 'token_choice'"
        )
        require(
            0 < self.capacity_start <= self.num_experts if self.capacity_steps else self.capacity_start == 0,
            "moe.capacity_start",
            self.capacity_start,
            f"above 0 and at most moe.num_experts ({self.num_experts}) exactly when moe.capacity_steps is set",
        )
        require(self.num_experts == 0 or 1 <= self.top_k <= self.num_experts, "moe.top_k", self.top_k, f"1 to moe.num_experts ({self.num_experts})")
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


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The diffusion transformer."""

    conditioning: Literal["text", "class"] = "text"
    """`text`: cross-attention to caption tokens in each block; `class`: a label embedding added to the timestep's."""
    num_classes: int = 0
    """Labels, for `class`; label `num_classes` is the null class of guidance."""
    image_size: int = 32
    """Height and width of training images in pixels."""
    channels: int = 3
    """Channels of images or latents."""
    patch_size: int = 4
    """Patch edge in latent pixels."""
    depth: int = 8
    """Blocks."""
    width: int = 160
    """Token width D."""
    heads: int = 4
    """Attention heads."""
    feed_forward_ratio: float = 4.0
    """Hidden width of dense feed-forward networks over the token width."""
    size_conditioning: bool = False
    """Tell the network the original's size, the crop's place and the image's size (SDXL's micro-conditions), added to the timestep embedding."""
    activation_checkpointing: Literal["none", "blocks", "experts"] = "none"
    """What is recomputed in the backward pass instead of being stored: whole blocks, or their feed-forward networks (dense and experts) alone."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of weights and activations; optimizer state is always fp32."""

    def __post_init__(self) -> None:
        for name in ("image_size", "channels", "patch_size", "depth", "width", "heads"):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "at least 1")
        require(self.feed_forward_ratio > 0, "model.feed_forward_ratio", self.feed_forward_ratio, "above 0")
        require(self.width % self.heads == 0, "model.width", self.width, f"a multiple of model.heads ({self.heads})")
        require(self.width % 4 == 0, "model.width", self.width, "a multiple of 4 (2-D position embedding)")
        require(
            (self.conditioning == "class") == (self.num_classes > 0),
            "model.num_classes",
            self.num_classes,
            "above 0 exactly when model.conditioning is 'class'",
        )


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The training objective and its clock: t = 0 is data, t = 1 is noise."""

    kind: Literal["flow", "ddpm"] = "flow"
    """`flow`: x_t = (1 - t) x_0 + t noise (DiffMoE eq. 24); `ddpm`: 1000 linear steps with learned sigma."""
    prediction: Literal["velocity", "sample"] = "velocity"
    """What the network outputs under `flow`: the velocity noise - x_0, or x_0 itself."""
    loss: Literal["velocity", "sample"] = "velocity"
    """What the squared error is taken of; `sample`, for prediction `sample`, weighs by t^2 against `velocity`: layout before detail."""
    time_sampling: Literal["uniform", "logit_normal"] = "uniform"
    """Distribution of t in training, for `flow`."""
    logit_mean: float = 0.0
    """Mean of logit(t); negative favours little noise."""
    logit_std: float = 1.0
    """Standard deviation of logit(t)."""
    time_scale: float = 1000.0
    """For `flow`: factor on t in [0, 1] before its sinusoidal embedding; the reference implementation's flow models use 1."""
    min_time: float = 0.05
    """Smallest t that a velocity is divided by, for prediction `sample`."""

    def __post_init__(self) -> None:
        require(
            self.loss == "velocity" or self.prediction == "sample",
            "diffusion.loss",
            self.loss,
            "left at 'velocity' unless diffusion.prediction is 'sample'",
        )
        require(self.logit_std > 0, "diffusion.logit_std", self.logit_std, "above 0")
        require(
            self.kind == "flow" or self.time_sampling == "uniform",
            "diffusion.time_sampling",
            self.time_sampling,
            "left at 'uniform' for diffusion.kind 'ddpm'",
        )
        require(0 < self.min_time < 1, "diffusion.min_time", self.min_time, "in (0, 1)")
        require(
            self.kind == "flow" or self.prediction == "velocity",
            "diffusion.prediction",
            self.prediction,
            "left at 'velocity' for diffusion.kind 'ddpm' (it predicts noise and sigma)",
        )
