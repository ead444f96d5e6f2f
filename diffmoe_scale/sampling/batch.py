"""Pictures from trained networks, batch after batch."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from diffmoe_scale.config.check import require
from diffmoe_scale.config.sampling import SamplingConfig
from diffmoe_scale.diffusion.noise import sample_noise
from diffmoe_scale.model.condition import Condition
from diffmoe_scale.model.networks import Networks
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.sampling.build import build_sampler, times_for
from diffmoe_scale.sampling.call_capacity import CallCapacity
from diffmoe_scale.sampling.guidance import GuidedNetwork, Watch
from diffmoe_scale.sampling.loads import LoadByTime
from diffmoe_scale.words import counted

logger = logging.getLogger(__name__)

STEP_SEED = 1_000_003
"""Between the seeds of two steps' fresh noise. torch's generator of a CPU reads 32 bits of a seed: a power of
two would be lost there."""
MAX_SEED = 2**32 - 1
"""Larger seeds would, for the same reason, give the pictures of smaller ones."""


@dataclass(frozen=True)
class Request:
    """One picture to be drawn: of a caption (or label, in class mode), from noise of (seed, index) alone.

    Guidance leads away from `negative_prompt`, in class mode from no class.
    """

    prompt: str | int
    seed: int
    index: int = 0
    negative_prompt: str = ""


@dataclass(frozen=True)
class Generated:
    """Pictures [B, 3, H, W] in [-1, 1], what was asked for, how much the experts worked for them, how many
    calls of the network a picture took (guidance is a second call), and what each call cost each picture."""

    requests: Sequence[Request]
    images_BCHW: Tensor
    loads: LoadByTime
    calls: float = 0.0
    capacities: list[CallCapacity] = field(default_factory=list)


def number_requests(
    prompts: Sequence[str | int], *, seed: int, first_index: int = 0, negative_prompt: str = ""
) -> list[Request]:
    """A request for each prompt, from noise `first_index`, `first_index` + 1, ... of one seed."""
    return [
        Request(prompt, seed, index, negative_prompt) for index, prompt in enumerate(prompts, first_index)
    ]


def check_seed(seed: object) -> None:
    """Raises: ValueError for what is no seed."""
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        raise ValueError(f"the seed is {seed!r:.80}; expected a whole number, 0 to {MAX_SEED}")


def generate_batches(
    networks: Networks,
    requests: Sequence[Request],
    sampling: SamplingConfig,
    *,
    selection: Selection | None = None,
    title: str = "sampling",
    has_progress: bool = True,
) -> Iterator[Generated]:
    """The pictures of all requests in batches of `sampling.batch`, with a progress bar; `selection` as for
    `generate_batch`."""
    is_hidden = None if has_progress else True  # None: hidden where there is no terminal
    with tqdm(total=len(requests), desc=title, unit="image", disable=is_hidden) as progress:
        for first in range(0, len(requests), sampling.batch):
            asked = requests[first : first + sampling.batch]
            batch = generate_batch(networks, asked, sampling, selection=selection)
            is_finite_B = batch.images_BCHW.isfinite().flatten(1).all(1)
            if not is_finite_B.all():
                count = int((~is_finite_B).sum())
                logger.warning("numbers that are not finite in %s, drawn in grey", counted(count, "picture"))
            yield batch
            progress.update(len(batch.requests))


@torch.no_grad()
def generate_batch(
    networks: Networks,
    requests: Sequence[Request],
    sampling: SamplingConfig,
    *,
    selection: Selection | None = None,
    watch: Watch | None = None,
) -> Generated:
    """A picture for each request: it does not change with the batch that it is drawn in. All ranks of an
    expert-parallel group must call this with equal numbers of requests.

    `selection` is how experts choose (`thresholds.find_selection`), by default what `sampling` says. `watch`
    is shown each call of the network.

    Raises: ValueError if `sampling.height` or `sampling.width` cannot be cut into patches, or without the
    selection that `sampling.capacity` needs.
    """
    selection = selection or plain_selection(sampling)
    if sampling.batch_invariant and len(requests) > 1:
        return _join(
            [
                generate_batch(networks, [request], sampling, selection=selection, watch=watch)
                for request in requests
            ]
        )
    shape = _, height, width = latent_shape(networks, sampling)
    sizes_BZ = _sizes(networks, height, width, count=len(requests))
    denoiser = networks.denoiser
    is_any = _any_of_expert_ranks(networks)
    was_training = denoiser.training
    denoiser.eval()
    try:
        predict = GuidedNetwork(
            networks,
            sampling,
            _condition(networks, requests, sizes_BZ),
            _unconditional(networks, requests, sizes_BZ),
            selection=selection,
            is_any=is_any,
            watch=watch,
        )
        sampler = build_sampler(
            sampling,
            fresh_noise=lambda step: _noise(requests, shape, networks.device, step=step + 1),
            is_any=is_any,
        )
        num_tokens = height * width // denoiser.transformer.patch**2
        latents_BCHW = sampler(
            predict,
            networks.objective,
            _noise(requests, shape, networks.device),
            times_for(sampling, networks.objective, num_tokens=num_tokens),
        )
    finally:
        denoiser.train(was_training)
    images_BCHW = networks.autoencoder.decode(latents_BCHW).clamp(-1, 1)
    return Generated(requests, images_BCHW, predict.loads, predict.calls, predict.capacities)


def plain_selection(sampling: SamplingConfig) -> Selection:
    """How experts choose where no thresholds were calibrated.

    Raises: ValueError with `sampling.capacity`.
    """
    if sampling.capacity != 0:
        raise ValueError(
            f"sampling.capacity is {sampling.capacity:g}, but its thresholds were not looked for; give "
            "generate_batches the selection of diffmoe_scale.sampling.thresholds.find_selection"
        )
    return Selection(rule=sampling.selection, gamma=sampling.gamma)


def _join(parts: Sequence[Generated]) -> Generated:
    loads = LoadByTime()
    for part in parts:
        loads.merge(part.loads)
    return Generated(
        [request for part in parts for request in part.requests],
        torch.cat([part.images_BCHW for part in parts]),
        loads,
        sum(part.calls for part in parts) / len(parts),
        [replace(call, places=[place]) for place, part in enumerate(parts) for call in part.capacities],
    )


def _any_of_expert_ranks(networks: Networks) -> Callable[[bool], bool]:
    """Whether a truth holds on any rank that shares experts with this one: they must call the network equally
    often. The function returned is collective over them."""
    layers = networks.denoiser.moe_layers()
    group = layers[0].token_dispatcher.ep_group if layers else None
    if group is None or group.size() == 1:
        return bool

    def is_any(truth: bool) -> bool:
        flag = torch.tensor([int(truth)], device=networks.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=group)
        return bool(flag)

    return is_any


def latent_shape(networks: Networks, sampling: SamplingConfig) -> tuple[int, int, int]:
    """[C, H, W] of the latents of the pictures asked for.

    Raises: ValueError if `sampling.height` or `sampling.width` cannot be cut into patches.
    """
    channels, *sides = networks.latent_shape
    multiple = networks.autoencoder.factor * networks.denoiser.transformer.patch
    expected = f"a multiple of {multiple} (model.patch_size times the autoencoder's factor)"
    for number, name in enumerate(("height", "width")):
        pixels = getattr(sampling, name)
        require(pixels % multiple == 0, f"sampling.{name}", pixels, expected)
        sides[number] = pixels // networks.autoencoder.factor or sides[number]
    return channels, sides[0], sides[1]


def _noise(
    requests: Sequence[Request], shape: tuple[int, ...], device: torch.device, *, step: int = 0
) -> Tensor:
    """Of (seed, index) alone; step 0 is the start, 1, 2, ... the fresh noise of the steps."""
    return torch.cat(
        [
            sample_noise(request.seed + step * STEP_SEED, [request.index], shape, device)[1]
            for request in requests
        ]
    )


def _sizes(networks: Networks, height: int, width: int, *, count: int) -> Tensor:
    """Of an original of just this size, not cropped; also for the unconditional half, as in SDXL."""
    factor = networks.autoencoder.factor
    size = [height * factor, width * factor, 0, 0, height * factor, width * factor]
    return torch.tensor([size] * count, dtype=torch.float32)


def _condition(networks: Networks, requests: Sequence[Request], sizes_BZ: Tensor) -> Condition:
    prompts = [request.prompt for request in requests]
    captions = [prompt if isinstance(prompt, str) else "" for prompt in prompts]
    labels_B = torch.tensor([prompt if isinstance(prompt, int) else -1 for prompt in prompts])
    return networks.condition(captions, labels_B, sizes_BZ=sizes_BZ)


def _unconditional(networks: Networks, requests: Sequence[Request], sizes_BZ: Tensor) -> Condition:
    captions = [request.negative_prompt for request in requests]
    no_class_B = torch.full((len(requests),), networks.num_classes)
    return networks.condition(captions, no_class_B, sizes_BZ=sizes_BZ)
