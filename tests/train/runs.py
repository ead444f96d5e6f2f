"""A tiny class-conditional model and 20 steps of its training by the engine on several ranks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from diffmoe_scale.config.load import load_config
from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.reading.batch import Batch, to_unit_range
from diffmoe_scale.model.condition import Condition
from diffmoe_scale.model.networks import Networks, build_networks
from diffmoe_scale.model.transformer import Prediction
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.moe.thresholds import update_routers
from diffmoe_scale.nn.generator import named_generator
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.train.engine import Engine
from diffmoe_scale.train.loss import StepLoss, condition_of, denoising_loss
from tests.data.samples import pixels_of, write_shards

STEPS = 20
# Clipping and weight decay change every step; the routers learn at half the rate of the others.
TINY = [
    f"run.steps={STEPS}",
    "run.global_batch=8",
    "run.micro_batch=2",
    "model.conditioning=class",
    "model.num_classes=5",
    "model.image_size=16",
    "model.depth=2",
    "model.width=32",
    "model.heads=2",
    "moe.num_experts=4",
    "optimizer.learning_rate=1.0e-3",
    "optimizer.router_learning_rate_ratio=0.5",
    "optimizer.weight_decay=0.1",
    "optimizer.clip_norm=0.3",
    # Gradients that are 0 but for rounding (of key biases) must not become steps of full length.
    "optimizer.eps=1.0e-6",
]
CPU = torch.device("cpu")


def text_settings(folder: Path) -> list[str]:
    """A run in FOLDER/run on captioned pictures in FOLDER; 40 samples for training, 10 for validation."""
    paths = write_shards(folder, [24, 16, 10])
    return [
        "model.conditioning=text",
        "model.num_classes=0",
        "text.vocabulary=300",
        "text.max_tokens=8",
        "text.width=32",
        "text.depth=1",
        f"data.train=[{paths[0]},{paths[1]}]",
        f"data.validation=[{paths[2]}]",
        f"run.directory={folder / 'run'}",
        "telemetry.tensorboard=false",
        "telemetry.log_every=1",
    ]


@dataclass
class Run:
    """What a training did, whole: the layout of ranks does not show."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    state: dict[str, np.ndarray] = field(default_factory=dict)


def tiny_config(settings: Sequence[str]) -> Config:
    return load_config(None, [*TINY, *settings])


def tiny_pipeline(config: Config, groups: ProcessGroupCollection, *, tokenizer: Path = Path()) -> Networks:
    """The same weights whatever the layout. Each has a value of its own: at initialisation most of the
    network is switched off by zeros."""
    pipeline = build_networks(config, tokenizer_path=tokenizer, groups=groups, device=CPU)
    with torch.no_grad():
        for name, parameter in pipeline.denoiser.canonical_parameters().items():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=named_generator(0, name)))
        for layer in pipeline.denoiser.moe_layers():
            # Scores far apart, so that rounding moves no token.
            layer.router.weight.mul_(10)
    return pipeline


def tiny_batch(first: int, count: int, *, config: Config) -> Batch:
    """Samples `first` to `first + count` of an endless data set of noise."""
    numbers, size = range(first, first + count), config.model.image_size
    pixels = [
        torch.randint(
            0, 256, (size, size, 3), dtype=torch.uint8, generator=named_generator(0, "image", number)
        )
        for number in numbers
    ]
    return Batch(
        pixels_BHWC=torch.stack(pixels),
        captions=[""] * count,
        labels_B=torch.tensor([number % config.model.num_classes for number in numbers]),
        weight_B=torch.ones(count),
        dropped_B=torch.zeros(count, dtype=torch.bool),
        indices_B=torch.tensor(numbers),
        keys=[str(number) for number in numbers],
        failures=[],
        uncaptioned=[],
        sizes_BZ=torch.zeros(count, 6),
    )


def rank_batches(step: int, config: Config, context: ParallelContext) -> list[Batch]:
    """The micro-batches of a rank in step 1, 2, ...: of the same samples as the reader's."""
    count, ranks = config.run.micro_batch, context.data_ranks
    chunks = config.run.global_batch // (count * ranks)
    first = (step - 1) * config.run.global_batch + context.data_rank * count
    return [tiny_batch(first + chunk * count * ranks, count, config=config) for chunk in range(chunks)]


def compute_loss(
    predict: Callable[..., Prediction], pipeline: Networks, batch: Batch, *, seed: int = 0
) -> StepLoss:
    return denoising_loss(
        predict,
        pipeline.objective,
        batch,
        to_unit_range(pixels_of(batch)),
        condition_of(batch, pipeline),
        seed=seed,
        selection=Selection(),
    )


def predict_once(pipeline: Networks, config: Config) -> np.ndarray:
    """The network's answer to one fixed input."""
    batch = tiny_batch(0, 4, config=config)
    with torch.no_grad():
        time_B = torch.full((4,), 500.0)
        prediction = pipeline.denoiser(
            to_unit_range(pixels_of(batch)),
            time_B,
            Condition(batch.labels_B),
            Selection("static"),
        )
    return prediction.value_BCHW.numpy()


def engine_step(
    step: int, engine: Engine, pipeline: Networks, config: Config, context: ParallelContext, run: Run
) -> None:
    losses, statistics = [], []
    for batch in rank_batches(step, config, context):
        loss = compute_loss(engine, pipeline, batch)
        engine.backward(loss.total)
        losses.append(float(loss.total.detach()))
        statistics.append(torch.stack([routing.statistic_X for routing in loss.routings]))
    run.norms.append(engine.step(config.optimizer.learning_rate).gradient_norm)
    run.losses.append(sum(losses) / len(losses))
    update_routers(pipeline.denoiser.moe_layers(), statistics, context.dp_group)


@dataclass
class RankRun:
    """A rank's share: `losses` are means over its own samples, `state` the slices that it owns."""

    run: Run
    state: dict[str, tuple[np.ndarray, int, tuple[int, ...]]]


def train_on_rank(
    context: ParallelContext, all_settings: list[list[str]], steps: int = STEPS
) -> list[RankRun]:
    """One training after another, each from the same weights."""
    answers = []
    for settings in all_settings:
        config = tiny_config(settings)
        pipeline = tiny_pipeline(config, context.megatron_groups)
        engine = Engine(pipeline.denoiser, config, context)
        run = Run()
        for step in range(1, steps + 1):
            engine_step(step, engine, pipeline, config, context, run)
        answers.append(RankRun(run, copy_state(engine)))
    return answers


def copy_state(engine: Engine) -> dict[str, tuple[np.ndarray, int, tuple[int, ...]]]:
    return {
        name: (piece.values.numpy().copy(), piece.start, piece.shape)
        for name, piece in engine.state().items()
    }


def assemble(ranks: Sequence[RankRun]) -> Run:
    """The whole of all ranks' shares; an element that no rank owns stays NaN."""
    run = Run(losses=np.mean([rank.run.losses for rank in ranks], axis=0).tolist(), norms=ranks[0].run.norms)
    for rank in ranks:
        assert rank.run.norms == run.norms
        for name, (values, start, shape) in rank.state.items():
            whole = run.state.setdefault(name, np.full(int(np.prod(shape)), np.nan))
            whole[start : start + values.size] = values
    return run
