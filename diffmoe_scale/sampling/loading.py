"""A trained model from its run directory, on one process whatever layout it was trained on."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any  # settings of any type

from diffmoe_scale.checkpoint.convertible import refuse_convertible
from diffmoe_scale.checkpoint.manifest import complete_checkpoints, find_damage, read_manifest
from diffmoe_scale.checkpoint.stored import StoredWeights, different_settings, is_export, open_export
from diffmoe_scale.checkpoint.weights import fill_tensors
from diffmoe_scale.cli.arguments import WEIGHTS
from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.identity import model_settings
from diffmoe_scale.config.load import load_run_config
from diffmoe_scale.config.parallel import ParallelConfig
from diffmoe_scale.config.run_directory import RunDirectory, run_of_checkpoint
from diffmoe_scale.config.schema import Config
from diffmoe_scale.config.section import expand_home
from diffmoe_scale.files import replace_file
from diffmoe_scale.model.denoiser import Denoiser
from diffmoe_scale.model.networks import Networks, build_networks
from diffmoe_scale.moe.thresholds import untrained_thresholds
from diffmoe_scale.parallel.context import ParallelContext, initialize
from diffmoe_scale.parallel.waiting import wait_for_ranks
from diffmoe_scale.sampling.ranks import Ranks

logger = logging.getLogger(__name__)

EXPERT = re.compile(r"(.*\bexperts\.)\d+(\..*)")
MAX_ATTEMPTS = 50
"""Checkpoints that may be removed one after another while they are read."""


@dataclass(frozen=True)
class Pipeline:
    """Networks with the weights of a checkpoint, and where they came from."""

    networks: Networks
    config: Config
    directory: RunDirectory
    checkpoint: Path
    step: int
    weights: str = "ema"
    context: ParallelContext | None = None
    """The ranks that draw together; None is this process alone."""


def load_pipeline(
    path: Path | str,
    *,
    weights: str = "ema",
    settings: Sequence[str] = (),
    context: ParallelContext | None = None,
) -> Pipeline:
    """The model of a run directory (newest complete checkpoint), of one of its `checkpoints/step_N` folders,
    or of an export of weights (a .safetensors file or a folder of such files).

    `weights` are `ema` (averaged), `ema2` (by optimizer.ema2_decay) or `master` (of the last step);
    `settings` are `key.sub=value` words that override the run's, but for parallel.expert_parallel, which is 1
    unless it is given there. Without `context` the ranks that the launcher started are joined. Collective
    over them.

    Raises: ValueError if there is no complete checkpoint, it is damaged, or it does not fit RUN/config.yaml.
    """
    path = Path(expand_home(str(path), "the path of a run"))
    if weights not in WEIGHTS:
        raise ValueError(f"weights are {weights!r}; expected one of {', '.join(WEIGHTS)}")
    refuse_convertible(path)
    if is_export(path):
        return _load_export(path, weights=weights, settings=settings, context=context)
    directory = directory_of(path)
    if not directory.config.is_file():
        raise ValueError(
            f"{path} is no run: {directory.config} does not exist; give a run directory or one of its "
            "checkpoints/step_N folders"
        )
    if not directory.config.read_bytes().strip():
        raise ValueError(f"{directory.config} is empty; restore it: it says what the weights are of")
    config = load_run_config(directory.config, ["parallel.expert_parallel=1", *settings])
    named = path if run_of_checkpoint(path) else None
    if named is None:
        _newest(directory)  # before the networks are built: without one the answer comes at once
    context = context or join_ranks(config.parallel.expert_parallel)
    networks, meaning = _build(config, directory, context)
    if context.world_size > 1:
        # A training beside us may complete a checkpoint between two ranks' looks.
        named = Ranks(context).of_main(lambda: named or _newest(directory))
    checkpoint, step = _fill(networks.denoiser, directory, named, weights=weights, settings=meaning)
    _warn_of_thresholds(networks.denoiser, config)
    return Pipeline(networks, config, directory, checkpoint, step, weights, context)


def directory_of(path: Path) -> RunDirectory:
    """Where pictures, scores and thresholds of a run, a checkpoint or an export go."""
    if is_export(path):
        beside = RunDirectory(path if path.is_dir() else path.with_suffix(""))
        # demo.safetensors beside the run demo: the run keeps its own scores and tokenizer.
        return RunDirectory(path.with_name(f"{path.stem}-export")) if beside.config.is_file() else beside
    return run_of_checkpoint(path) or RunDirectory(path)


def _load_export(
    path: Path, *, weights: str, settings: Sequence[str], context: ParallelContext | None
) -> Pipeline:
    """The model of an export. Its directory, for pictures and scores, is the folder of its files, or one
    beside the file with its name; the tokenizer is put there. Raises: ValueError as `load_pipeline`."""
    stored = open_export(path, ["parallel.expert_parallel=1", *settings], is_foreign=True)
    if weights not in stored.families:
        held = ", ".join(name for name in stored.families if name != "buffer")
        raise ValueError(f"weights are {weights!r}, but {path} holds {held}; give --weights {held}")
    config = stored.config
    directory = directory_of(path)
    context = context or join_ranks(config.parallel.expert_parallel)
    if stored.tokenizer and Ranks(context).is_main:
        directory.path.mkdir(parents=True, exist_ok=True)
        replace_file(directory.tokenizer, stored.tokenizer)
    wait_for_ranks(context.waiting_group)
    networks, meaning = _build(config, directory, context)
    if changed := different_settings(stored.settings, meaning):
        raise ValueError(f"{path} is of another model: {'; '.join(changed)}")
    fill_from(stored, networks.denoiser, weights)
    _warn_of_thresholds(networks.denoiser, config)
    return Pipeline(networks, config, directory, path, stored.step, weights, context)


def _warn_of_thresholds(denoiser: Denoiser, config: Config) -> None:
    if not config.moe.has_thresholds or not config.sampling.selection.startswith("threshold"):
        return
    if problem := untrained_thresholds(denoiser.moe_layers()):
        logger.warning("%s; train on, or set sampling.selection=static", problem)


def _build(
    config: Config, directory: RunDirectory, context: ParallelContext
) -> tuple[Networks, dict[str, Any]]:
    """Networks without their weights, and the settings that say what weights mean. Collective over the
    world."""
    networks = build_networks(
        config,
        tokenizer_path=directory.tokenizer,
        groups=context.megatron_groups,
        device=context.device,
        waiting_group=context.waiting_group,
    )
    meaning = model_settings(config, tokenizer=directory.tokenizer, frozen=networks.frozen)
    return networks, meaning


def fill_from(stored: StoredWeights, denoiser: Denoiser, family: str) -> None:
    """Fill this rank's part of the denoiser. Raises: ValueError naming tensors that are missing or of another
    shape."""
    for name, tensors in (
        (family, denoiser.canonical_parameters()),
        ("buffer", denoiser.canonical_buffers()),
    ):
        for key, tensor in tensors.items():
            held = stored.tensors.get(f"{name}/{key}")
            if held is None or held.shape != tuple(tensor.shape):
                there = "missing" if held is None else str(list(held.shape))
                raise ValueError(
                    f"{stored.path} is of another model: {key} is {there} there and {list(tensor.shape)} here"
                )
            tensor.detach().copy_(held.read())


def _fill(
    denoiser: Denoiser,
    directory: RunDirectory,
    named: Path | None,
    *,
    weights: str,
    settings: Mapping[str, Any],
) -> tuple[Path, int]:
    """Fill the denoiser from the checkpoint `named`, or from the newest; that one's folder and step.

    A training beside us removes old checkpoints: of one that is gone by the time it was read nothing is
    known, and the newest is taken again. One that is still there and cannot be read is damaged.
    """
    for _ in range(MAX_ATTEMPTS):
        checkpoint = named or _newest(directory)
        try:
            manifest = read_manifest(checkpoint)
            if damage := find_damage(checkpoint, manifest, manifest.files):
                raise ValueError(
                    f"{checkpoint} is damaged: {'; '.join(damage)}; choose another of {directory.checkpoints}"
                )
            if not any(name.startswith(f"{weights}/") for name in manifest.shapes):
                raise ValueError(f"weights are {weights!r}, but {checkpoint} holds none; give --weights ema")
            load_weights(checkpoint, denoiser, family=weights, settings=settings)
            return checkpoint, manifest.step
        except (ValueError, RuntimeError, OSError) as error:
            if checkpoint.is_dir():
                raise
            if named is not None:
                raise ValueError(
                    f"{named} is not there, or was removed while it was read; choose another of "
                    f"{directory.checkpoints}"
                ) from error
            logger.info("%s was removed while it was read; the newest one is taken again", checkpoint)
    raise RunError(
        f"{MAX_ATTEMPTS} checkpoints of {directory.checkpoints} were removed while they were read; set "
        "checkpoint.keep_last above 1 in the training"
    )


def _newest(directory: RunDirectory) -> Path:
    complete = complete_checkpoints(directory.checkpoints)
    if not complete:
        raise ValueError(f"{directory.checkpoints} holds no complete checkpoint; train first")
    return complete[-1]


@cache
def join_ranks(expert_parallel: int) -> ParallelContext:
    """The ranks that the launcher started, or this process as a world of one. Joined once, so that several
    models can be loaded."""
    return initialize(expert_parallel=expert_parallel, timeout_s=ParallelConfig().timeout_s)


def load_weights(checkpoint: Path, denoiser: Denoiser, *, family: str, settings: Mapping[str, Any]) -> None:
    """Fill the denoiser with one family of weights (`ema` or `master`) and the thresholds of a checkpoint of
    any layout, but for experts of other ranks."""
    for name, tensors in (
        (family, denoiser.canonical_parameters()),
        ("buffer", denoiser.canonical_buffers()),
    ):
        others = other_experts(tensors, num_experts=_num_experts(denoiser))
        fill_tensors(checkpoint, tensors, family=name, settings=settings, elsewhere=others)


def _num_experts(denoiser: Denoiser) -> int:
    layers = denoiser.moe_layers()
    return layers[0].token_dispatcher.num_experts if layers else 0


def other_experts(names: Iterable[str], *, num_experts: int) -> set[str]:
    """Names of experts' tensors (`LAYER.experts.<index>.w_in`, ...) that are not among these of one rank."""
    here = set(names)
    matches = [match for name in here if (match := EXPERT.fullmatch(name))]
    return {f"{match[1]}{index}{match[2]}" for match in matches for index in range(num_experts)} - here
