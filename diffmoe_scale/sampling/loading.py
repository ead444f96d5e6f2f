"""A trained model from its run directory, on one process whatever layout it was trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any  # settings of any type

import torch
from tqdm import tqdm

from diffmoe_scale.checkpoint.manifest import complete_checkpoints, find_damage, read_manifest
from diffmoe_scale.checkpoint.store import fill_tensors
from diffmoe_scale.config.load import load_config, model_settings
from diffmoe_scale.config.parallel import ParallelConfig
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.sampling import SamplingConfig
from diffmoe_scale.config.schema import Config
from diffmoe_scale.model.denoiser import Denoiser
from diffmoe_scale.model.networks import Networks, build_networks
from diffmoe_scale.parallel.context import ParallelContext, initialize
from diffmoe_scale.sampling.generate import Generated, generate


@dataclass(frozen=True)
class LoadedModel:
    """Networks with the weights of a checkpoint, and where they came from."""

    networks: Networks
    config: Config
    directory: RunDirectory
    checkpoint: Path
    step: int


def load_pipeline(path: Path, *, weights: str, settings: Sequence[str] = ()) -> LoadedModel:
    """The model of a run directory (newest complete checkpoint) or of one of its `checkpoints/step_N`
    folders.

    `settings` are `key.sub=value` words that override the run's.

    Raises: ValueError if there is no complete checkpoint, it is damaged, or it does not fit RUN/config.yaml.
    """
    is_checkpoint = path.parent.name == "checkpoints"
    directory = RunDirectory(path.parent.parent if is_checkpoint else path)
    if not directory.config.is_file():
        raise ValueError(
            f"{path} is no run: {directory.config} does not exist; give a run directory or one of its checkpoints/step_N folders"
        )
    config = load_config(directory.config, [*settings, "parallel.expert_parallel=1"])
    complete = [path] if is_checkpoint else complete_checkpoints(directory.checkpoints)
    if not complete:
        raise ValueError(f"{directory.checkpoints} holds no complete checkpoint; train first")
    checkpoint = complete[-1]
    manifest = read_manifest(checkpoint)
    if damage := find_damage(checkpoint, manifest, manifest.files):
        raise ValueError(
            f"{checkpoint} is damaged: {'; '.join(damage)}; choose another of {directory.checkpoints}"
        )
    context = join_alone()
    networks = build_networks(
        config, tokenizer_path=directory.tokenizer, groups=context.megatron_groups, device=context.device
    )
    meaning = model_settings(config, tokenizer=directory.tokenizer, frozen=networks.frozen)
    load_weights(checkpoint, networks.denoiser, family=weights, settings=meaning)
    return LoadedModel(
        networks=networks, config=config, directory=directory, checkpoint=checkpoint, step=manifest.step
    )


@cache
def join_alone() -> ParallelContext:
    """This process as a world of one. Made once, so that several models can be loaded."""
    return initialize(expert_parallel=1, timeout_s=ParallelConfig().timeout_s)


def load_weights(checkpoint: Path, denoiser: Denoiser, *, family: str, settings: Mapping[str, Any]) -> None:
    """Fill the denoiser with one family of weights (`ema` or `master`) and the thresholds of a checkpoint of
    any layout."""
    for name, tensors in (
        (family, denoiser.canonical_parameters()),
        ("buffer", denoiser.canonical_buffers()),
    ):
        fill_tensors(checkpoint, tensors, family=name, settings=settings)


def draw(
    networks: Networks,
    prompts: Sequence[str | int],
    sampling: SamplingConfig,
    *,
    seed: int,
    title: str = "sampling",
) -> Generated:
    """`generate` in batches of `sampling.batch`, with a progress bar; loads are averaged over
    batches by their size."""
    parts: list[Generated] = []
    with tqdm(total=len(prompts), desc=title, unit="image", disable=None) as progress:
        for first in range(0, len(prompts), sampling.batch):
            batch = prompts[first : first + sampling.batch]
            parts.append(generate(networks, batch, sampling, seed=seed, first_index=first))
            progress.update(len(batch))
    counts = torch.tensor([part.images_BCHW.shape[0] for part in parts], dtype=torch.float32)
    loads = torch.stack([part.load_TLE for part in parts])
    return Generated(
        images_BCHW=torch.cat([part.images_BCHW for part in parts]),
        load_TLE=(loads * counts[:, None, None, None]).sum(0) / counts.sum(),
    )
