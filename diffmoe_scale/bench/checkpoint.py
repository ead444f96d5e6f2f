"""How long a checkpoint stops training: written in the background, as a run does it, and waited for."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch

from diffmoe_scale.bench.options import CheckpointOptions
from diffmoe_scale.bench.work_folder import work_folder
from diffmoe_scale.checkpoint.manifest import Manifest
from diffmoe_scale.checkpoint.store import CheckpointStore
from diffmoe_scale.config.load import load_config
from diffmoe_scale.config.schema import Config
from diffmoe_scale.diffusion.objective import Objective
from diffmoe_scale.model.condition import Condition
from diffmoe_scale.model.networks import build_networks
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.parallel.context import ParallelContext, finalize, initialize
from diffmoe_scale.train.engine import Engine

DEPTH, BATCH, CLASSES = 8, 4, 10
BACKGROUND, WAITED_FOR = "background", "waited for"
TIMED = ("step", "stall", "whole save", "step in a save")
Seconds = dict[str, dict[str, list[float]]]
"""By way of saving and by what was timed."""


@dataclass(frozen=True)
class Saves:
    """What was timed, of a model of how many parameters, on which device."""

    seconds: Seconds
    num_parameters: int
    device: torch.device

    def medians_s(self) -> dict[str, dict[str, float]]:
        return {
            way: {name: median(values) for name, values in timed.items() if values}
            for way, timed in self.seconds.items()
        }

    def stall_share(self) -> float:
        """The stall of a background save over the time of one that is waited for."""
        medians = self.medians_s()
        return medians[BACKGROUND]["stall"] / medians[WAITED_FOR]["stall"]

    def as_result(self) -> dict[str, object]:
        """The fields of the JSON file."""
        return {
            "num_parameters": self.num_parameters,
            "stall_share": self.stall_share(),
            "medians_s": self.medians_s(),
            "seconds": self.seconds,
        }

    def describe(self) -> str:
        lines = [f"{self.num_parameters / 1e6:.0f} M parameters, {self.device}, seconds (medians)"]
        lines.append("".join(f"{title:>16}" for title in ("way", *TIMED)))
        for way, row in self.medians_s().items():
            cells = [f"{row[name]:16.2f}" if name in row else f"{'':16}" for name in TIMED]
            lines.append(f"{way:>16}" + "".join(cells))
        lines.append(f"stall of a background save over a synchronous one: {self.stall_share():.3f}")
        return "\n".join(lines)


class Training:
    """Steps of one process on the same random pictures."""

    def __init__(self, config: Config, context: ParallelContext) -> None:
        pipeline = build_networks(
            config, tokenizer_path=Path(), groups=context.megatron_groups, device=context.device
        )
        self.engine = Engine(pipeline.denoiser, config, context)
        self.objective: Objective = pipeline.objective
        self.images_BCHW = torch.randn(BATCH, *pipeline.latent_shape, device=context.device)
        labels_B = torch.arange(BATCH, device=context.device) % CLASSES
        self.condition = Condition(labels_B)
        self.waited_s = 0.0
        self.num_parameters = sum(parameter.numel() for parameter in pipeline.denoiser.parameters())

    def wait_for_copy(self, store: CheckpointStore) -> None:
        """What a step waits for before it changes anything; its seconds are added to `waited_s`."""
        begin = time.monotonic()
        store.wait_for_copy()
        self.waited_s += time.monotonic() - begin

    def step_s(self) -> float:
        """Take a step; its seconds."""
        begin = time.monotonic()
        time_B = torch.linspace(0.1, 0.9, BATCH, device=self.images_BCHW.device)
        prediction = self.engine(
            self.images_BCHW, self.objective.embedding_time(time_B), self.condition, Selection("train")
        )
        self.engine.backward((prediction.value_BCHW - self.images_BCHW).square().mean())
        self.engine.step(1e-6)
        return time.monotonic() - begin


def bench_checkpoint(options: CheckpointOptions) -> Saves:
    """Train, save, and remove the checkpoints again. Once a process."""
    torch.set_num_threads(options.threads)
    with work_folder(options.folder, "bench_checkpoint_") as folder:
        config = choose_config(options.parameters, options.width, folder)
        context = initialize(expert_parallel=1, timeout_s=600)
        training = Training(config, context)
        # The store also writes beside its folder.
        checkpoints, group = folder / "checkpoints", context.checkpoint_group
        with CheckpointStore(checkpoints, config.checkpoint, group=group) as store:
            training.engine.before_change = partial(training.wait_for_copy, store)
            seconds = time_saves(training, store, saves=options.saves, warm_steps=options.steps)
        finalize()
    return Saves(seconds, training.num_parameters, training.images_BCHW.device)


def choose_config(num_parameters: float, width: int, folder: Path) -> Config:
    """The model whose number of experts brings it nearest to `num_parameters`: half of the blocks have
    experts of 8 width^2."""
    without_experts, of_expert = 14.5 * DEPTH * width**2, DEPTH // 2 * 8 * width**2
    num_experts = max(2, round((num_parameters - without_experts) / of_expert))
    model = [
        "model.conditioning=class",
        f"model.num_classes={CLASSES}",
        f"model.width={width}",
        f"model.depth={DEPTH}",
        "model.heads=8",
    ]
    run = [
        f"run.global_batch={BATCH}",
        f"run.micro_batch={BATCH}",
        f"run.directory={folder}",
        "checkpoint.keep_last=1",
    ]
    return load_config(None, [*model, *run, f"moe.num_experts={num_experts}"])


def time_saves(training: Training, store: CheckpointStore, *, saves: int, warm_steps: int) -> Seconds:
    """Ways alternate, so that both meet the same machine."""
    ways: Seconds = {way: {name: [] for name in TIMED} for way in (BACKGROUND, WAITED_FOR)}
    training.step_s()
    # The first save also allocates the copies: not counted.
    save_s(training, store, 1, is_waited_for=True)
    for number in range(saves):
        for offset, (way, seconds) in enumerate(ways.items()):
            seconds["step"] += [training.step_s() for _ in range(warm_steps)]
            step = 10 * number + offset + 2
            stall, whole, steps = save_s(training, store, step, is_waited_for=way == WAITED_FOR)
            seconds["stall"].append(stall)
            seconds["whole save"].append(whole)
            seconds["step in a save"] += steps
    return ways


def save_s(
    training: Training, store: CheckpointStore, step: int, *, is_waited_for: bool
) -> tuple[float, float, list[float]]:
    """Seconds that training stood still, that the save took, and that each step took which began before its
    end. It stands still when the save begins, and in the next step while that waits for the copy."""
    training.waited_s, begin = 0.0, time.monotonic()
    store.save(training.engine.state(), Manifest(step=step, samples=0, optimizer_steps=step))
    if is_waited_for:
        store.finish()
    stall, steps = time.monotonic() - begin, []
    while not store.is_idle():
        steps.append(training.step_s())
    store.finish()
    stall += training.waited_s
    return stall, time.monotonic() - begin, steps
