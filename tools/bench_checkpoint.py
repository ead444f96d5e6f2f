"""How long a checkpoint stops training: written in the background, as a run does it, and waited for.

    python tools/bench_checkpoint.py --parameters 300e6 --folder /fast/disk --output checkpoint.json

One process trains a class-conditional model with experts on random pictures. A save is timed until the next
step can begin, and until it is complete while steps go on. It needs about 50 bytes of memory and 32 of disk a
parameter. On a CPU, copying, writing and check sums compete with training for the cores and for memory
bandwidth: `step in a save` over `step` is that price. The share printed is that of a synchronous save, which
needs no copy: what a save that is waited for takes, less the stall.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from diffmoe_scale.bench.timing import write_result
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
FAMILIES = ("step", "stall", "whole save", "step in a save")


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


class Training:
    """Steps of one process on the same random pictures."""

    def __init__(self, config: Config, context: ParallelContext, folder: Path) -> None:
        pipeline = build_networks(
            config, tokenizer_path=Path(), groups=context.megatron_groups, device=context.device
        )
        self.engine = Engine(pipeline.denoiser, config, context)
        self.objective: Objective = pipeline.objective
        self.images_BCHW = torch.randn(BATCH, *pipeline.latent_shape, device=context.device)
        labels_B = torch.arange(BATCH, device=context.device) % CLASSES
        self.condition = Condition(labels_B)
        self.num_parameters = sum(parameter.numel() for parameter in pipeline.denoiser.parameters())

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


def bench(
    training: Training, store: CheckpointStore, *, saves: int, warm_steps: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds by way of saving and by what was timed. Ways alternate, so that both meet the same machine."""
    ways: dict[str, dict[str, list[float]]] = {
        way: {family: [] for family in FAMILIES} for way in ("background", "waited for")
    }
    training.step_s()
    # The first save also allocates the copies: not counted.
    save_s(training, store, 1, is_waited_for=True)
    for number in range(saves):
        for offset, (way, seconds) in enumerate(ways.items()):
            seconds["step"] += [training.step_s() for _ in range(warm_steps)]
            stall, whole, steps = save_s(
                training, store, 10 * number + offset + 2, is_waited_for=way == "waited for"
            )
            seconds["stall"].append(stall)
            seconds["whole save"].append(whole)
            seconds["step in a save"] += steps
    return ways


def save_s(
    training: Training, store: CheckpointStore, step: int, *, is_waited_for: bool
) -> tuple[float, float, list[float]]:
    """Seconds that training stood still, that the save took, and that each step took which began before its
    end."""
    begin = time.monotonic()
    store.save(training.engine.state(), Manifest(step=step, samples=0, optimizer_steps=step))
    if is_waited_for:
        store.finish()
    stall, steps = time.monotonic() - begin, []
    while not store.is_idle():
        steps.append(training.step_s())
    store.finish()
    return stall, time.monotonic() - begin, steps


def summarize(ways: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    return {
        way: {family: median(values) for family, values in seconds.items() if values}
        for way, seconds in ways.items()
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--parameters",
        type=float,
        default=300e6,
        help="size of the model, met by its number of experts (300e6)",
    )
    parser.add_argument("--width", type=int, default=512, help="width of the model, a multiple of 8 (512)")
    parser.add_argument("--saves", type=int, default=3, help="counted saves of each kind (3)")
    parser.add_argument("--steps", type=int, default=2, help="steps between saves (2)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (2)")
    parser.add_argument(
        "--folder",
        type=Path,
        help="where checkpoints are written and removed again; the machine's temporary folder if none",
    )
    parser.add_argument("--output", type=Path, help="JSON file")
    parsed = parser.parse_args(arguments)
    for name in ("saves", "steps", "threads"):
        if getattr(parsed, name) < 1:
            parser.error(f"--{name} is {getattr(parsed, name)}; expected at least 1")
    return parsed


def main(arguments: list[str] | None = None) -> int:
    parsed = parse(arguments)
    torch.set_num_threads(parsed.threads)
    if parsed.folder is not None:
        parsed.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parsed.folder, prefix="bench_checkpoint_"))
    try:
        config = choose_config(parsed.parameters, parsed.width, folder)
        context = initialize(expert_parallel=1, timeout_s=600)
        training = Training(config, context, folder)
        with CheckpointStore(folder, config.checkpoint, group=context.checkpoint_group) as store:
            ways = bench(training, store, saves=parsed.saves, warm_steps=parsed.steps)
        finalize()
    finally:
        shutil.rmtree(folder)
    medians = summarize(ways)
    stall = medians["background"]["stall"]
    share = stall / (medians["waited for"]["stall"] - stall)
    print(
        f"{training.num_parameters / 1e6:.0f} M parameters, {training.images_BCHW.device}, seconds (medians)"
    )
    print("".join(f"{title:>16}" for title in ("way", *FAMILIES)))
    for way, row in medians.items():
        print(
            f"{way:>16}"
            + "".join(f"{row[family]:16.2f}" if family in row else f"{'':16}" for family in FAMILIES)
        )
    print(f"stall of a background save over a synchronous one: {share:.3f}")
    if parsed.output is not None:
        write_result(
            parsed.output,
            training.images_BCHW.device,
            num_parameters=training.num_parameters,
            stall_share=share,
            medians_s=medians,
            seconds=ways,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
