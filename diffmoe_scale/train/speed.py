"""How well a run uses its GPUs: tokens and operations a second, and MFU."""

import logging
import resource

import torch

from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.reading.batch import Batch
from diffmoe_scale.plan.build import latent_shape, tokens_per_picture
from diffmoe_scale.plan.flops import count_flops
from diffmoe_scale.plan.step_time import number_format
from diffmoe_scale.telemetry.hardware import find_gpu

logger = logging.getLogger(__name__)


class Speed:
    """Operations of forward and backward of a picture (`plan.flops`, without what activation checkpointing
    repeats), over what the GPU can do (`telemetry.hardware`, in the number format of the model)."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self._square = config.model.image_size
        self._tokens = tokens_per_picture(config)
        _, self._latent_square, _ = latent_shape(config)
        # Over the whole batch: a pool of several ranks may need more tokens than one rank has.
        self.flops = count_flops(config, num_samples=config.run.global_batch).model
        is_bf16 = config.model.precision == "bf16"
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        gpu = find_gpu(name) if device.type == "cuda" else None
        self._peak = gpu.flops[number_format(is_bf16, config)] if gpu else 0.0
        if gpu is None:
            logger.info("throughput/mfu is left out: what %s can do at most is not known", name)

    def squares(self, batch: Batch) -> float:
        """How many pictures of `model.image_size` have as many tokens as a batch has."""
        count = len(batch.keys)
        if batch.pixels_BHWC is not None:
            height, width = batch.pixels_BHWC.shape[1:3]
            return count * height * width / self._square**2
        assert batch.latents_BCHW is not None
        height, width = batch.latents_BCHW.shape[2:]
        return count * height * width / self._latent_square**2

    def metrics(self, squares_per_s: float, *, ranks: int) -> dict[str, float]:
        """Of ranks that train on so many pictures of `model.image_size` a second together: tokens of all,
        operations of one."""
        flops = self.flops * squares_per_s / ranks
        found = {
            "throughput/tflops": flops / 1e12,
            "throughput/tokens_per_s": squares_per_s * self._tokens,
        }
        return found | {"throughput/mfu": flops / self._peak} if self._peak else found


def peak_memory_gib(device: torch.device) -> float:
    """Of the GPU's allocator, or resident memory of this process on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
