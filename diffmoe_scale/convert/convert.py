"""A conversion from one path to another: what the source is, the target whole or not at all, and the proof
that both answer alike."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from diffmoe_scale.checkpoint.convertible import DIFFUSERS, TORCH_SUFFIXES
from diffmoe_scale.checkpoint.stored import FORMAT, StoredWeights, is_export, open_weights
from diffmoe_scale.checkpoint.tensor_file import read_files
from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.run_directory import RunDirectory, run_of_checkpoint
from diffmoe_scale.convert.diffusers import DIT, diffusers_class, open_diffusers
from diffmoe_scale.convert.dit import read_shapes
from diffmoe_scale.convert.export import (
    average_checkpoints,
    cast_weights,
    select_weights,
    write_files,
)
from diffmoe_scale.convert.foreign import ask_foreign, export_foreign, import_foreign, open_foreign
from diffmoe_scale.convert.megatron import is_megatron, open_megatron, write_megatron
from diffmoe_scale.convert.pipeline import plan_folder, write_folder
from diffmoe_scale.convert.pipeline_config import describe_sampling
from diffmoe_scale.convert.pipeline_import import is_folder, open_folder
from diffmoe_scale.convert.pipeline_verify import ask_folder
from diffmoe_scale.convert.place import check_target, new_target
from diffmoe_scale.convert.torch_file import read_torch_file, write_torch_file
from diffmoe_scale.convert.verify import (
    Question,
    ask,
    check_tensors,
    difference,
    explain_numbers,
    make_question,
)
from diffmoe_scale.nn.number_formats import NUMBER_FORMATS
from diffmoe_scale.words import counted

logger = logging.getLogger(__name__)

SAME, ROUND_OFF, DIFFUSERS_ROUND_OFF, ROUNDED = 0.0, 1e-4, 1e-3, 1e-2
"""Tolerances, relative to the largest output: of our own network on the same numbers, of another program for
it, of diffusers, one of whose norms has an epsilon of its own (1e-5), and of a .pt file in bf16, for which
the embedding of time is rounded once more when it is turned round."""
Answer = Callable[[str, Question], Tensor]
"""A family's answer to a question."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """`weights` are `ema`, `ema2`, `master` or `all`; "" is `ema` of a run, and all that any other source
    has. `experts` and `links` (to the weights of frozen networks) are for a diffusers folder."""

    weights: str = ""
    dtype: str = "fp32"
    shard_gib: float = 0.0
    average: int = 0
    is_verified: bool = True
    settings: Sequence[str] = ()
    to: str = ""
    """`diffusers` for a folder that diffusers loads, `megatron` for one that Megatron does; else the
    target's name says the format."""
    experts: str = "stacked"
    links: bool = False


@dataclass(frozen=True)
class Source:
    """Weights of ours, and how what they come from answers by itself."""

    stored: StoredWeights
    answer: Answer
    tolerance: float
    is_run: bool = False


Preparation = Callable[[StoredWeights, str], tuple[StoredWeights, list[str]]]
"""What is done to weights before they are written, for the family named, and lines about it."""


def convert(source: Path, target: Path, options: Options, *, prepare: Preparation | None = None) -> list[str]:
    """Convert, and what was done, a line each. `prepare` is for a run's weights.

    Raises: ValueError for a source that is damaged, foreign or cannot be held by the target's format, or a
    target that exists; RunError if source and target answer differently.
    """
    check_target(target, source=source, to=options.to)
    opened = open_source(source, options)
    is_pipeline = options.to == "diffusers"
    has_average = bool(options.to) and "ema" in opened.stored.families
    weights = options.weights or ("ema" if opened.is_run or has_average else "all")
    prepared: list[str] = []
    if prepare is not None:
        own, prepared = prepare(opened.stored, weights)
        opened = replace(opened, stored=own, answer=lambda family, question: ask(own, family, question))
    chosen = select_weights(opened.stored, weights)
    check_tensors(chosen.config, chosen)
    stored = cast_weights(chosen, NUMBER_FORMATS[options.dtype])
    is_torch = target.suffix in TORCH_SUFFIXES and not options.to
    folder = plan_folder(stored, layout=options.experts) if is_pipeline else None
    if options.shard_gib and options.to == "megatron":
        raise ValueError("--shard-gib is not for --to megatron, which has a file for each tensor")
    if options.shard_gib and folder is None and (is_torch or target.suffix == ".safetensors"):
        raise ValueError(f"--shard-gib is for a folder; {target} is the name of one file")
    states = export_foreign(stored) if is_torch else {}
    size = sum(tensor.num_bytes for tensor in stored.tensors.values())
    frozen_size = 0 if folder is None or options.links else folder.num_bytes
    with new_target(target, num_bytes=size + frozen_size) as path:
        if folder is not None:
            write_folder(folder, path, shard_gib=options.shard_gib, links=options.links)
        elif options.to == "megatron":
            write_megatron(stored, path)
        elif is_torch:
            write_torch_file(path, states, stored.origin.get("arguments"))
        else:
            is_file = target.suffix == ".safetensors"
            write_files(stored, path, is_file=is_file, shard_gib=options.shard_gib)
        lines = ["not verified (--no-verify)"]
        if options.is_verified:
            with explain_numbers(stored):
                lines = verify(opened, stored, path)
    lines += describe_sampling(stored.config) if is_pipeline else []
    count = len(stored.tensors)
    families = ", ".join(name for name in stored.families)
    return [
        f"{target}: {counted(count, 'tensor')} of {families} in {options.dtype}, {size:,} bytes",
        *prepared,
        *lines,
    ]


def open_source(path: Path, options: Options) -> Source:
    """What lies at a path, recognised by its files. Raises: ValueError."""
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if options.average:
        if not RunDirectory(path).config.is_file():
            raise ValueError(f"--average is {options.average}, for a run directory; {path} is none")
        stored = average_checkpoints(path, options.average, options.settings)
        return Source(stored, lambda family, question: ask(stored, family, question), SAME, is_run=True)
    if is_folder(path):
        own = open_folder(path, options.settings)
        return Source(own, lambda family, question: ask(own, family, question), SAME)
    if is_megatron(path):
        own = open_megatron(path, options.settings)
        return Source(own, lambda family, question: ask(own, family, question), SAME)
    if path.is_dir() and diffusers_class(path):
        diffusers_model = open_diffusers(path, options.settings)
        imported = import_foreign(diffusers_model.model)
        return Source(imported, diffusers_model.answer, DIFFUSERS_ROUND_OFF)
    if (path / DIFFUSERS).is_file() and path.is_dir():
        raise ValueError(f"{path} is a pipeline of diffusers without a transformer; expected one with {DIT}")
    if (path.is_file() or is_export(path)) and not _is_ours(path):
        model = open_foreign(path, options.settings)
        if options.weights not in ("", "all"):
            model = model.only(options.weights)
        return Source(import_foreign(model), model.answer, ROUND_OFF)
    own = open_weights(path, options.settings, check_files="when read")
    is_run = (path.is_dir() and own.path != path) or run_of_checkpoint(path) is not None
    return Source(own, lambda family, question: ask(own, family, question), SAME, is_run=is_run)


def _is_ours(path: Path) -> bool:
    is_read = path.is_dir() or path.suffix == ".safetensors"
    return is_read and read_files(path)[0].get("format") == FORMAT


def verify(source: Source, stored: StoredWeights, path: Path) -> list[str]:
    """Compare what the written model answers with what the source does. Raises: RunError if they differ."""
    question = make_question(stored.config)
    lines = []
    for family in [name for name in stored.families if name != "buffer"]:
        expected = source.answer(family, question)
        written = _ask_written(stored, path, family, question)
        is_rounded = any(
            tensor.dtype != source.stored.tensors[name].dtype for name, tensor in stored.tensors.items()
        )
        if is_rounded:
            lines.append(f"{family}: rounding changes the output by {difference(written, expected):.2g}")
            expected = ask(stored, family, question)
        is_other = (path.is_file() and path.suffix in TORCH_SUFFIXES) or is_folder(path)
        tolerance = SAME if is_rounded and not is_other else source.tolerance
        if is_other:
            tolerance = max(tolerance, ROUNDED if is_rounded and not is_folder(path) else ROUND_OFF)
        off = difference(written, expected)
        if not off <= tolerance:
            raise RunError(
                f"the converted model's output ({family}) differs by {off:.3g} of the largest from the "
                f"source's; tolerance {tolerance:g}; nothing was written"
            )
        lines.append(f"{family}: the output on a fixed input differs by {off:.2g} (tolerance {tolerance:g})")
    return lines


def _ask_written(stored: StoredWeights, path: Path, family: str, question: Question) -> Tensor:
    if is_folder(path):
        return ask_folder(path, stored.config, question)
    if is_megatron(path):
        return ask(open_megatron(path), family, question)
    if path.suffix not in TORCH_SUFFIXES or path.is_dir():
        return ask(open_weights(path), family, question)
    states = read_torch_file(path).states
    # A bare state dict does not say which weights it holds.
    family = family if family in states else "ema"
    return ask_foreign(states, family, read_shapes(states[family]), stored.config, question)
