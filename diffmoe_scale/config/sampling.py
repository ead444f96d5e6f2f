"""Settings of sampling."""

from dataclasses import dataclass
from typing import Annotated, Literal

from diffmoe_scale.config.check import require
from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.config.section import PATH, Range, Section

Weights = Literal["ema", "ema2", "master"]
"""Averaged weights, those of optimizer.ema2_decay, and those of the last step."""
SamplerName = Literal["euler", "heun", "adams_bashforth", "dpm_solver", "dopri5", "ddim", "ancestral"]
SAMPLERS: dict[str, tuple[SamplerName, ...]] = {
    "flow": ("euler", "heun", "adams_bashforth", "dpm_solver", "dopri5"),
    "ddpm": ("euler", "ddim", "ancestral", "dpm_solver"),
}
"""Those that fit each `diffusion.kind`."""
FEWEST_STEPS = {"heun": 2, "adams_bashforth": 3, "dpm_solver": 4, "ancestral": 2}
"""With fewer, a sampler never comes to the step that is its own."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Section, name="sampling", is_free=True):
    """How pictures are drawn from the model."""

    sampler: SamplerName = "euler"
    """The solver. diffusion.kind flow: euler, heun (two calls a step), adams_bashforth, dpm_solver
    (DPM-Solver++ 2M), dopri5 (adaptive); ddpm: euler (DDIM without noise), ddim, ancestral, dpm_solver."""
    steps: Annotated[int, Range(1, 10_000)] = 20
    """Times at which the sampler calls the network, from noise to data; dopri5 finds its own."""
    tolerance: Annotated[float, Range(1e-7, 0.1)] = 1e-3
    """Error that a step of dopri5 may have, relative and absolute."""
    shift: Literal["none", "constant", "sd3", "flux"] = "none"
    """Moves times t to s t / (1 + (s - 1) t), s above 1 towards noise: s is `shift_factor`, times
    sqrt(tokens of the picture / 256) for sd3, times exp(0.5 to 1.15 for 256 to 4096 tokens) for flux."""
    shift_factor: Annotated[float, Range(0.01, 100)] = 1.0
    """Factor of the times' shift."""
    guidance: Annotated[float, Range(-100, 1000)] = 3.0
    """Classifier-free guidance scale; 1 is none."""
    guidance_start: Annotated[float, Range(0, 1)] = 1.0
    """Guidance is off at times t above this."""
    guidance_end: Annotated[float, Range(0, 1)] = 0.0
    """Guidance is off at times t below this."""
    guidance_rescale: Annotated[float, Range(0, 1)] = 0.0
    """Share by which the guided prediction is given back the standard deviation of the unguided one (arXiv
    2305.08891): less burnt colours at large guidance."""
    guidance_channels: Annotated[int, Range(0, 65_536)] = 0
    """Channels of latents, from the first, that guidance changes; 0 is all. The samplers of DiT, SiT and the
    DiffMoE reference guide 3 of 4: their published scores are of pictures drawn so."""
    fresh_noise: Annotated[float, Range(0, 1)] = 0.0
    """Share of the predicted noise that each step of euler draws anew: 0 is deterministic, 1 (few steps)
    mends what early steps got wrong. For ddim it is eta: 1 is the noise of DDPM."""
    selection: Literal["threshold", "threshold_count", "interval", "static"] = "threshold"
    """How experts choose: predictor over threshold (DiffMoE eq. 14), its count by gate score (reference
    code), predictor over gamma, or top K. Routers `expert_race` and `expert_threshold` have scores for the
    predictor; routers without thresholds have `static` only."""
    gamma: Annotated[float, Range(0, 1)] = 0.5
    """The constant threshold of `interval`."""
    capacity: Annotated[float, Range(0, 100_000)] = 0.0
    """Average experts a token gets, over pictures and steps: thresholds that give it are found before the
    first picture and kept in RUN/calibrations. 0 leaves it to `selection`."""
    calibration: Literal["gamma", "quantile"] = "gamma"
    """What is found for `capacity`: one threshold for all, or one for each layer and expert, by which all
    take equally many tokens."""
    calibration_images: Annotated[int, Range(1, 1_000_000)] = 128
    """Pictures that are drawn for each trial of a calibration."""
    calibration_prompts: Annotated[str, PATH] = ""
    """File of their prompts, as for `sample --prompts`; empty takes captions of the run's validation shards
    (else training shards), in class mode all labels."""
    batch: Annotated[int, Range(1, 65_536)] = 64
    """Images drawn at once."""
    batch_invariant: bool = False
    """Each picture by network calls of its own: bitwise the same in any batch and on any number of ranks, but
    slower. Else pictures of other batches differ by rounding."""
    height: Annotated[int, Range(0, 16_384)] = 0
    """Of the pictures, in pixels; 0 is model.image_size."""
    width: Annotated[int, Range(0, 16_384)] = 0
    """Of the pictures, in pixels; 0 is model.image_size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fewest = FEWEST_STEPS.get(self.sampler, 1)
        require(
            self.steps >= fewest,
            "sampling.steps",
            self.steps,
            f"at least {fewest} for sampling.sampler {self.sampler!r}",
        )
        require(
            self.fresh_noise == 0 or self.sampler in ("euler", "ddim"),
            "sampling.fresh_noise",
            self.fresh_noise,
            f"0 for sampling.sampler {self.sampler!r}",
        )
        require(
            self.capacity == 0 or self.selection == "threshold",
            "sampling.capacity",
            self.capacity,
            f"0 for sampling.selection {self.selection!r}; with 'threshold' its thresholds are calibrated",
        )
        require(
            self.guidance_end <= self.guidance_start,
            "sampling.guidance_end",
            self.guidance_end,
            f"at most sampling.guidance_start ({self.guidance_start:g}); time runs from 1 (noise) to 0",
        )
        require(
            self.shift_factor == 1 or self.shift != "none",
            "sampling.shift_factor",
            self.shift_factor,
            "1 unless sampling.shift is set",
        )
        require(
            self.shift == "none" or self.sampler != "dopri5",
            "sampling.shift",
            self.shift,
            "'none' for sampling.sampler 'dopri5', which finds its own times",
        )


def check_capacity(sampling: SamplingConfig, moe: MoEConfig) -> None:
    """Raises: ValueError for a capacity that this model cannot be asked for."""
    if sampling.capacity == 0:
        return
    require(moe.num_experts > 0, "sampling.capacity", sampling.capacity, "0: a dense model has no experts")
    require(
        moe.has_thresholds,
        "sampling.capacity",
        sampling.capacity,
        f"0: moe.router {moe.router!r} has no capacity predictor and no thresholds, its capacity is that of "
        "training",
    )
    require(
        sampling.capacity < moe.num_experts,
        "sampling.capacity",
        sampling.capacity,
        f"below moe.num_experts ({moe.num_experts})",
    )


def check_guidance(sampling: SamplingConfig, channels: int) -> None:
    """Raises: ValueError for more channels than the latents have."""
    require(
        sampling.guidance_channels <= channels,
        "sampling.guidance_channels",
        sampling.guidance_channels,
        f"at most model.channels ({channels}), or 0 for all",
    )


def check_sampler(sampling: SamplingConfig, kind: Literal["flow", "ddpm"]) -> None:
    """Raises: ValueError for a sampler that does not fit `diffusion.kind`."""
    fitting = SAMPLERS[kind]
    require(
        sampling.sampler in fitting,
        "sampling.sampler",
        sampling.sampler,
        f"one of {', '.join(fitting)}: diffusion.kind is {kind!r}",
    )
    if kind == "ddpm":
        require(
            sampling.steps <= 1000 or sampling.sampler == "euler",
            "sampling.steps",
            sampling.steps,
            "at most 1000 for diffusion.kind 'ddpm'",
        )
        require(
            sampling.shift == "none",
            "sampling.shift",
            sampling.shift,
            "'none' for diffusion.kind 'ddpm', whose times are steps of its own schedule",
        )
