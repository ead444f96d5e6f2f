"""Memory of real training steps on gloo ranks of this machine, held against the plan."""

import gc
from dataclasses import dataclass

import torch

from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.reading.batch import Batch
from diffmoe_scale.diffusion.objective import build_objective
from diffmoe_scale.model.condition import NUM_SIZE_CONDITIONS
from diffmoe_scale.model.initialization import initialize_weights
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.nn.number_formats import NUMBER_FORMATS
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.plan.build import build_denoiser, real_inputs
from diffmoe_scale.plan.storages import StorageTracker
from diffmoe_scale.plan.trace import forget_positions
from diffmoe_scale.train.engine import Engine
from diffmoe_scale.train.loss import denoising_loss

CPU = torch.device("cpu")
STEPS = 2
"""The optimizer's moments are made in the first step; the second is what every other is."""


@dataclass(frozen=True)
class Measured:
    """Bytes of all tensors of a rank: between two steps, and the most in each part of a step."""

    between: int
    forward: int
    backward: int
    update: int

    @property
    def peak(self) -> int:
        return max(self.forward, self.backward, self.update)


def measure_on_rank(context: ParallelContext, config: Config) -> Measured:
    """Steps of training on noise, every tensor counted. Collective over the world."""
    forget_positions()
    tracker = StorageTracker(CPU)
    with tracker:
        network = build_denoiser(config, context.megatron_groups)
        initialize_weights(network, config.run.seed)
        network.to(CPU, NUMBER_FORMATS[config.model.precision])
        tracker.add_module(network)
        engine = Engine(network, config, context)
        for _ in range(STEPS):
            gc.collect()  # what construction left in circles goes sooner or later
            measured = _step(engine, config, tracker)
    return measured


def _step(engine: Engine, config: Config, tracker: StorageTracker) -> Measured:
    between, count = tracker.current, config.run.micro_batch
    peaks = {"forward": 0, "backward": 0, "update": 0}
    objective = build_objective(config.diffusion)

    def note(part: str) -> None:
        peaks[part] = max(peaks[part], tracker.peak)
        tracker.reset_peak()

    tracker.reset_peak()
    for _ in range(engine.accumulation):
        latents_BCHW, condition = real_inputs(config, count)
        batch = _batch(count)
        loss = denoising_loss(
            engine, objective, batch, latents_BCHW, condition, seed=0, selection=Selection()
        )
        note("forward")
        engine.backward(loss.total)
        note("backward")
    engine.step(config.optimizer.learning_rate)
    note("update")
    return Measured(between=between, **peaks)


def _batch(count: int) -> Batch:
    """Samples without pictures: `denoising_loss` is given their latents."""
    return Batch(
        pixels_BHWC=None,
        captions=[""] * count,
        labels_B=torch.zeros(count, dtype=torch.int64),
        weight_B=torch.ones(count),
        dropped_B=torch.zeros(count, dtype=torch.bool),
        indices_B=torch.arange(count),
        keys=[str(number) for number in range(count)],
        failures=[],
        uncaptioned=[],
        sizes_BZ=torch.zeros(count, NUM_SIZE_CONDITIONS),
    )
