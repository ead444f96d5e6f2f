"""Pictures from a trained denoiser: sampling with guidance and inference by the capacity predictor."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from diffmoe_scale.config.check import require
from diffmoe_scale.config.sampling import SamplingConfig
from diffmoe_scale.config.schema import Config
from diffmoe_scale.diffusion.noise import sample_noise
from diffmoe_scale.diffusion.objective import Objective, build_objective
from diffmoe_scale.encoders.autoencoder.autoencoder import Autoencoder, build_autoencoder
from diffmoe_scale.encoders.text.text import build_text_encoder
from diffmoe_scale.model.denoiser import Condition, Denoiser, build_denoiser
from diffmoe_scale.moe.routing import Routing, Selection
from diffmoe_scale.sampling.euler import euler, guide, sampling_times

STEP_SEED = 1_000_003
"""Between the seeds of two steps' fresh noise. torch's generator of a CPU reads 32 bits of a seed: a power of
two would be lost there."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Generated:
    """Pictures, and how much the experts worked for them.

    `load_TLE[step, layer, expert]` is the share of tokens that the expert took, times E: 1 is a dense
    network's work. Empty ([0, 0, 0]) for dense models.
    """

    images_BCHW: Tensor
    load_TLE: Tensor

    @property
    def capacity(self) -> float:
        """Average inference capacity (DiffMoE eq. 15)."""
        return float(self.load_TLE.mean()) if self.load_TLE.numel() else 1.0


@dataclass(frozen=True)
class Pipeline:
    """What is needed to draw pictures. All ranks of an expert-parallel group must call `generate` with equal
    counts."""

    denoiser: Denoiser
    objective: Objective
    autoencoder: Autoencoder
    latent_shape: tuple[int, int, int]
    num_classes: int
    device: torch.device

    @cached_property
    def frozen(self) -> dict[str, str]:
        """Fingerprints of the networks that are not trained, by their section of settings; "" where there is
        none."""
        encoder = self.denoiser.caption_encoder
        text = encoder.fingerprint() if encoder is not None and not encoder.is_trained else ""
        return {"autoencoder": self.autoencoder.fingerprint(), "text": text}

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[str | int], sampling: SamplingConfig, *, seed: int, first_index: int = 0
    ) -> Generated:
        """One picture [3, H, W] in [-1, 1] for each caption (or label, in class mode).

        Picture i starts from noise of (seed, first_index + i) alone: it does not change with the batch that
        it is drawn in.

        Raises: ValueError if `sampling.height` or `sampling.width` cannot be cut into patches.
        """
        count = len(prompts)
        channels, height, width = self._latent_shape(sampling)
        pixels = (height * self.autoencoder.factor, width * self.autoencoder.factor)
        # An original of just this size, not cropped; also for the unconditional half, as in SDXL.
        sizes_BZ = torch.tensor([[*pixels, 0, 0, *pixels]] * count, dtype=torch.float32, device=self.device)
        condition = self._condition(prompts, sizes_BZ)
        unconditional = Condition.unconditional(
            count, num_classes=self.num_classes, device=self.device, sizes_BZ=sizes_BZ
        )
        text = self.denoiser.encode(condition.captions, self.device)
        empty_text = self.denoiser.encode(unconditional.captions, self.device)
        selection = Selection(rule=sampling.selection, gamma=sampling.gamma)
        loads_by_step: list[Tensor] = []

        def predict(x_BCHW: Tensor, t_B: Tensor) -> Tensor:
            time_B = self.objective.embedding_time(t_B)
            prediction = self.denoiser(x_BCHW, time_B, condition, selection, text)
            loads = [_loads(prediction.routings)]
            value = prediction.value_BCHW
            if sampling.guidance != 1.0 and float(t_B[0]) >= sampling.guidance_end:
                # A pass of its own: rules that count over a batch must not mix the two halves.
                baseline = self.denoiser(x_BCHW, time_B, unconditional, selection, empty_text)
                loads.append(_loads(baseline.routings))
                value = guide(value, baseline.value_BCHW, sampling.guidance)
            loads_by_step.append(torch.stack(loads).mean(0))
            return value

        indices, shape = range(first_index, first_index + count), (channels, height, width)
        _, noise_BCHW = sample_noise(seed, indices, shape, self.device)
        was_training = self.denoiser.training
        self.denoiser.eval()
        latents_BCHW = euler(
            predict,
            self.objective,
            noise_BCHW,
            sampling_times(sampling.steps),
            fresh_share=sampling.fresh_noise,
            fresh_noise=lambda step: sample_noise(seed + (step + 1) * STEP_SEED, indices, shape, self.device)[
                1
            ],
        )
        self.denoiser.train(was_training)
        return Generated(self.autoencoder.decode(latents_BCHW).clamp(-1, 1), torch.stack(loads_by_step).cpu())

    def _latent_shape(self, sampling: SamplingConfig) -> tuple[int, int, int]:
        channels, *sides = self.latent_shape
        multiple = self.autoencoder.factor * self.denoiser.transformer.patch
        for number, name in enumerate(("height", "width")):
            pixels = getattr(sampling, name)
            require(
                pixels % multiple == 0,
                f"sampling.{name}",
                pixels,
                f"a multiple of {multiple} (model.patch_size times the autoencoder's factor)",
            )
            sides[number] = pixels // self.autoencoder.factor or sides[number]
        return channels, sides[0], sides[1]

    def _condition(self, prompts: Sequence[str | int], sizes_BZ: Tensor) -> Condition:
        captions = [prompt if isinstance(prompt, str) else "" for prompt in prompts]
        labels = [prompt if isinstance(prompt, int) else -1 for prompt in prompts]
        return Condition(
            captions=captions,
            labels_B=torch.tensor(labels, device=self.device),
            dropped_B=torch.zeros(len(prompts), dtype=torch.bool, device=self.device),
            sizes_BZ=sizes_BZ,
        )


def _loads(routings: list[Routing]) -> Tensor:
    return torch.stack([routing.metrics["load_E"] for routing in routings]) if routings else torch.zeros(0, 0)


def build_pipeline(
    config: Config, *, tokenizer_path: Path, groups: ProcessGroupCollection, device: torch.device
) -> Pipeline:
    """The untrained network of a config, its weights in the format `model.precision`, with all that surrounds
    it.

    Raises: ValueError if image, autoencoder, patches and channels do not fit each other.
    """
    objective = build_objective(config.diffusion)
    autoencoder = build_autoencoder(config.autoencoder, device=device)
    size, factor = config.model.image_size, autoencoder.factor
    require(
        size % factor == 0,
        "model.image_size",
        size,
        f"a multiple of {factor}, by which the autoencoder of autoencoder.path shrinks images",
    )
    multiple = factor * config.model.patch_size
    require(
        not config.buckets.enabled or config.buckets.step % multiple == 0,
        "buckets.step",
        config.buckets.step,
        f"a multiple of {multiple} (model.patch_size times the autoencoder's factor)",
    )
    text_encoder = None
    if config.model.conditioning == "text":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.run.seed)
            text_encoder = build_text_encoder(config.text, tokenizer_path=tokenizer_path).to(device)
    latent_size = size // factor
    denoiser = build_denoiser(
        config,
        text_encoder=text_encoder,
        latent_channels=autoencoder.channels,
        latent_size=latent_size,
        output_channels=objective.output_channels(autoencoder.channels),
        groups=groups,
    )
    return Pipeline(
        denoiser=denoiser.to(device, PRECISIONS[config.model.precision]),
        objective=objective,
        autoencoder=autoencoder,
        latent_shape=(autoencoder.channels, latent_size, latent_size),
        num_classes=config.model.num_classes,
        device=device,
    )
