"""Pictures from a trained denoiser: sampling with guidance and inference by the capacity predictor."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffmoe_scale.config.check import require
from diffmoe_scale.config.sampling import SamplingConfig
from diffmoe_scale.diffusion.noise import sample_noise
from diffmoe_scale.model.condition import Condition
from diffmoe_scale.model.networks import Networks
from diffmoe_scale.moe.routing import Routing, Selection
from diffmoe_scale.sampling.euler import euler, guide, sampling_times

STEP_SEED = 1_000_003
"""Between the seeds of two steps' fresh noise. torch's generator of a CPU reads 32 bits of a seed: a power of
two would be lost there."""


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


@torch.no_grad()
def generate(
    networks: Networks,
    prompts: Sequence[str | int],
    sampling: SamplingConfig,
    *,
    seed: int,
    first_index: int = 0,
) -> Generated:
    """One picture [3, H, W] in [-1, 1] for each caption (or label, in class mode).

    Picture i starts from noise of (seed, first_index + i) alone: it does not change with the batch that it is
    drawn in. All ranks of an expert-parallel group must call it with equal counts.

    Raises: ValueError if `sampling.height` or `sampling.width` cannot be cut into patches.
    """
    count, denoiser, objective = len(prompts), networks.denoiser, networks.objective
    channels, height, width = _latent_shape(networks, sampling)
    pixels = (height * networks.autoencoder.factor, width * networks.autoencoder.factor)
    # An original of just this size, not cropped; also for the unconditional half, as in SDXL.
    sizes_BZ = torch.tensor([[*pixels, 0, 0, *pixels]] * count, dtype=torch.float32)
    condition = denoiser.encode(_condition(networks, prompts, sizes_BZ))
    unconditional = denoiser.encode(networks.unconditional(count, sizes_BZ=sizes_BZ))
    selection = Selection(rule=sampling.selection, gamma=sampling.gamma)
    loads_by_step: list[Tensor] = []

    def predict(x_BCHW: Tensor, t_B: Tensor) -> Tensor:
        time_B = objective.embedding_time(t_B)
        prediction = denoiser(x_BCHW, time_B, condition, selection)
        loads = [_loads(prediction.routings)]
        value: Tensor = prediction.value_BCHW
        if sampling.guidance != 1.0 and float(t_B[0]) >= sampling.guidance_end:
            # A pass of its own: rules that count over a batch must not mix the two halves.
            baseline = denoiser(x_BCHW, time_B, unconditional, selection)
            loads.append(_loads(baseline.routings))
            value = guide(value, baseline.value_BCHW, sampling.guidance)
        loads_by_step.append(torch.stack(loads).mean(0))
        return value

    indices, shape = range(first_index, first_index + count), (channels, height, width)

    def draw_noise(step_seed: int) -> Tensor:
        return sample_noise(step_seed, indices, shape, networks.device)[1]

    was_training = denoiser.training
    denoiser.eval()
    latents_BCHW = euler(
        predict,
        objective,
        draw_noise(seed),
        sampling_times(sampling.steps),
        fresh_share=sampling.fresh_noise,
        fresh_noise=lambda step: draw_noise(seed + (step + 1) * STEP_SEED),
    )
    denoiser.train(was_training)
    images_BCHW = networks.autoencoder.decode(latents_BCHW).clamp(-1, 1)
    return Generated(images_BCHW, torch.stack(loads_by_step).cpu())


def _latent_shape(networks: Networks, sampling: SamplingConfig) -> tuple[int, int, int]:
    channels, *sides = networks.latent_shape
    multiple = networks.autoencoder.factor * networks.denoiser.transformer.patch
    for number, name in enumerate(("height", "width")):
        pixels = getattr(sampling, name)
        require(
            pixels % multiple == 0,
            f"sampling.{name}",
            pixels,
            f"a multiple of {multiple} (model.patch_size times the autoencoder's factor)",
        )
        sides[number] = pixels // networks.autoencoder.factor or sides[number]
    return channels, sides[0], sides[1]


def _condition(networks: Networks, prompts: Sequence[str | int], sizes_BZ: Tensor) -> Condition:
    captions = [prompt if isinstance(prompt, str) else "" for prompt in prompts]
    labels_B = torch.tensor([prompt if isinstance(prompt, int) else -1 for prompt in prompts])
    return networks.condition(captions, labels_B, sizes_BZ=sizes_BZ)


def _loads(routings: list[Routing]) -> Tensor:
    return torch.stack([routing.metrics["load_E"] for routing in routings]) if routings else torch.zeros(0, 0)
