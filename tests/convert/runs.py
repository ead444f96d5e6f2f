"""A run directory whose checkpoints are of a small model of classes, written without a training."""

from collections.abc import Sequence
from pathlib import Path

import torch

from diffmoe_scale.checkpoint.manifest import Manifest
from diffmoe_scale.checkpoint.store import CheckpointStore
from diffmoe_scale.config.identity import model_settings
from diffmoe_scale.config.load import dump_config
from diffmoe_scale.config.run import CheckpointConfig
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.schema import Config
from diffmoe_scale.model.networks import build_networks
from diffmoe_scale.nn.generator import named_generator
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.parallel.slice import Slice
from diffmoe_scale.sampling.loading import join_ranks
from tests.train.runs import tiny_config

CPU = torch.device("cpu")
STEPS = (10, 20, 30)


def save_run(
    context: ParallelContext, folder: Path, settings: Sequence[str], steps: Sequence[int] = STEPS
) -> dict[str, torch.Tensor]:
    """The state of the last step by `family/name`, of this rank's experts; every element has a value of its
    own."""
    config = tiny_config([*settings, f"run.directory={folder}"])
    directory = RunDirectory(folder)
    folder.mkdir(parents=True, exist_ok=True)
    directory.config.write_text(dump_config(config), encoding="utf-8")
    networks = build_networks(
        config, tokenizer_path=directory.tokenizer, groups=context.megatron_groups, device=CPU
    )
    state: dict[str, torch.Tensor] = {}
    with CheckpointStore(
        directory.checkpoints, CheckpointConfig(keep_last=len(steps)), group=context.checkpoint_group
    ) as store:
        for step in steps:
            state = {
                f"{family}/{name}": drawn(family, name, step, parameter)
                for family in ("master", "ema")
                for name, parameter in networks.denoiser.canonical_parameters().items()
            }
            state |= {
                f"buffer/{name}": torch.full_like(buffer, 3 if buffer.dtype == torch.int64 else step / 100)
                for name, buffer in networks.denoiser.canonical_buffers().items()
            }
            store.save(
                {name: Slice.whole(tensor) for name, tensor in state.items()},
                manifest(config, step, directory.tokenizer),
            )
    return state


def drawn(family: str, name: str, step: int, like: torch.Tensor) -> torch.Tensor:
    return 0.1 * torch.randn(like.shape, generator=named_generator(step, family, name))


def manifest(config: Config, step: int, tokenizer: Path) -> Manifest:
    return Manifest(
        step=step,
        samples=step,
        optimizer_steps=step,
        settings=model_settings(config, tokenizer=tokenizer, frozen={"autoencoder": "pixels", "text": ""}),
        layout={"world_size": 1},
    )


def make_run(folder: Path, *settings: str, steps: Sequence[int] = STEPS) -> dict[str, torch.Tensor]:
    """One process's run in the folder, and the state of its last step."""
    return save_run(join_ranks(1), folder, settings, steps)
