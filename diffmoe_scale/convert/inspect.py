"""What a checkpoint is and what its weights are like: norms, thresholds, numbers that are none, and the
differences between two. A tensor is read at a time."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any  # JSON trees

from torch import Tensor

from diffmoe_scale.checkpoint.stored import FORMAT, StoredWeights, open_weights
from diffmoe_scale.checkpoint.tensor_file import INDEX, SINGLE, LazyTensor, read_files
from diffmoe_scale.convert.diffusers import diffusers_class, read_diffusers
from diffmoe_scale.convert.dit import is_dit
from diffmoe_scale.convert.megatron import is_megatron, open_megatron
from diffmoe_scale.convert.pipeline_import import is_folder, open_folder
from diffmoe_scale.convert.torch_file import read_torch_file
from diffmoe_scale.words import counted

THRESHOLDS = ("expert_threshold", "expert_threshold_E")
BLOCK = re.compile(r"^(.*?blocks?\.)(\d+)\.(.*)$")
SHOWN = 10


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors of any format, and what the format says beside them."""

    kind: str
    tensors: Mapping[str, LazyTensor]
    step: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def open_any(path: Path) -> Checkpoint:
    """Raises: ValueError if it is no checkpoint of a known format, or is damaged."""
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if is_folder(path):
        stored = open_folder(path)
        kind = "diffusers folder of this program"
        return Checkpoint(kind, stored.tensors, step=stored.step, facts=_facts(stored))
    if is_megatron(path):
        stored = open_megatron(path)
        kind = "Megatron checkpoint of this program"
        return Checkpoint(kind, stored.tensors, step=stored.step, facts=_facts(stored))
    if path.is_dir() and (name := diffusers_class(path)):
        return Checkpoint(f"diffusers {name}", read_diffusers(path))
    is_files = path.is_file() or (path / INDEX).is_file() or (path / SINGLE).is_file()
    if path.is_file() and path.suffix != ".safetensors":
        file = read_torch_file(path)
        tensors = {
            f"{family}/{name}": tensor
            for family, state in file.states.items()
            for name, tensor in state.items()
        }
        kind = "training checkpoint" if file.is_training else "state dict"
        names = file.states["ema"]
        facts = {"arguments": file.arguments, "not read": file.other} if file.is_training else {}
        return Checkpoint(f"{kind} of {_family_of(names)}", tensors, facts=facts)
    if is_files and read_files(path)[0].get("format") != FORMAT:
        metadata, tensors = read_files(path)
        return Checkpoint(f"safetensors of {_family_of(tensors)}", tensors, facts=dict(metadata))
    stored = open_weights(path, check_files="when read")
    kind = "export of this program" if is_files else "run's checkpoint"
    return Checkpoint(kind, stored.tensors, step=stored.step, facts=_facts(stored))


def _family_of(names: Mapping[str, LazyTensor]) -> str:
    if not is_dit(names):
        return "an unknown model"
    if any("expert_threshold" in name for name in names):
        return "DiffMoE"
    return "EC-DiT or TC-DiT" if any(".experts." in name for name in names) else "DiT or SiT"


def _facts(stored: StoredWeights) -> dict[str, Any]:
    model, moe = stored.config.model, stored.config.moe
    experts = f", {counted(moe.num_experts, 'expert')} ({moe.router})" if moe.num_experts else ""
    return {
        "path": str(stored.path),
        "model": f"{model.depth} blocks, {model.width} wide, {model.heads} heads{experts}",
        "diffusion": stored.config.diffusion.kind,
        "layout": dict(stored.layout),
        "tokenizer_bytes": len(stored.tokenizer),
    }


def inspect(checkpoint: Checkpoint) -> dict[str, Any]:
    """A tree for JSON: what it is, families, parameters by module, norms by layer, thresholds, bad
    tensors."""
    modules: dict[str, int] = {}
    squares: dict[str, float] = {}
    families: dict[str, int] = {}
    thresholds: dict[str, list[float | None]] = {}
    bad: dict[str, int] = {}
    for name, lazy in checkpoint.tensors.items():
        tensor = lazy.read()
        count = tensor.numel()
        family, _, own = name.rpartition("/")
        families[family] = families.get(family, 0) + count
        if own.rpartition(".")[2] in THRESHOLDS:
            thresholds[name] = [_finite(float(value)) for value in tensor.flatten()]
        if tensor.is_floating_point():
            if num_bad := int((~tensor.isfinite()).sum()):
                bad[name] = num_bad
            layer = f"{family}/{layer_of(own)}".lstrip("/")
            squares[layer] = squares.get(layer, 0.0) + float(tensor.double().square().sum())
        module = f"{family}/{module_of(own)}".lstrip("/")
        modules[module] = modules.get(module, 0) + count
    return {
        "kind": checkpoint.kind,
        "step": checkpoint.step,
        "facts": checkpoint.facts,
        "tensors": len(checkpoint.tensors),
        "dtypes": sorted({str(lazy.dtype).removeprefix("torch.") for lazy in checkpoint.tensors.values()}),
        "parameters_by_family": families,
        "parameters_by_module": modules,
        "norms_by_layer": {layer: _finite(math.sqrt(square)) for layer, square in squares.items()},
        "thresholds": thresholds,
        "not_finite": bad,
    }


def layer_of(name: str) -> str:
    """A block by its number; what is outside of blocks by its first name."""
    if found := BLOCK.match(name):
        return f"{found[1]}{found[2]}"
    return module_of(name)


def module_of(name: str) -> str:
    """The same part of all blocks: `blocks.*.attention`; experts as one."""
    if found := BLOCK.match(name):
        part = ".experts" if ".experts." in found[3] else ""
        return f"{found[1]}*.{found[3].split('.')[0]}{part}"
    parts = name.split(".")
    return ".".join(parts[:2]) if len(parts) > 2 else parts[0]


def compare(one: Checkpoint, other: Checkpoint) -> dict[str, Any]:
    """What is in one alone, and how far the common tensors are apart, relative to the first's norm; None
    where numbers that are not finite differ. A NaN is equal to another."""
    left, right = set(one.tensors), set(other.tensors)
    shapes, apart, equal = {}, {}, 0
    for name in sorted(left & right):
        mine, theirs = one.tensors[name], other.tensors[name]
        if mine.shape != theirs.shape:
            shapes[name] = [list(mine.shape), list(theirs.shape)]
            continue
        a, b = mine.read(), theirs.read()
        if bool(((a == b) | ((a != a) & (b != b))).all()):  # NaN alone is not equal to itself
            equal += 1
        else:
            apart[name] = _distance(a, b)
    return {
        "only_in_first": sorted(left - right),
        "only_in_second": sorted(right - left),
        "other_shape": shapes,
        "equal": equal,
        "relative_difference": apart,
    }


def _distance(a: Tensor, b: Tensor) -> float | None:
    norm = float(a.double().norm())
    return _finite(float((a.double() - b.double()).norm()) / max(norm, 1e-30))


def _finite(value: float) -> float | None:
    """None for others: JSON has no NaN."""
    return value if math.isfinite(value) else None


def describe(found: Mapping[str, Any]) -> list[str]:
    """The lines of a text of what `inspect` found."""
    step = "" if found["step"] is None else f", step {found['step']}"
    lines = [f"{found['kind']}{step}: {found['tensors']} tensor(s) of {', '.join(found['dtypes'])}"]
    lines += [f"  {key}: {_short(value)}" for key, value in found["facts"].items()]
    lines += _table("numbers by family", found["parameters_by_family"], "{:,}".format)
    lines += _table("numbers by module", found["parameters_by_module"], "{:,}".format)
    lines += _table("norms by layer", found["norms_by_layer"], lambda norm: _shown(norm, "5g"))
    thresholds = {
        name: ", ".join(_shown(value, "4f") for value in values)
        for name, values in found["thresholds"].items()
    }
    lines += _table("thresholds", thresholds, str)
    bad = found["not_finite"]
    lines += _table("NaN or infinite numbers", bad, "{:,}".format) if bad else ["all numbers are finite"]
    return lines


def describe_difference(found: Mapping[str, Any]) -> list[str]:
    """The lines of a text of what `compare` found."""
    lines = [f"{found['equal']} tensor(s) are equal"]
    for key, title in (("only_in_first", "only in the first"), ("only_in_second", "only in the second")):
        if names := found[key]:
            more = f", ... ({len(names)} in all)" if len(names) > SHOWN else ""
            lines.append(f"{title}: {', '.join(names[:SHOWN])}{more}")
    lines += _table("of another shape", found["other_shape"], str)
    apart = found["relative_difference"]
    largest_first = sorted(apart, key=lambda name: -math.inf if apart[name] is None else -apart[name])
    return lines + _table(
        "relative difference",
        {name: apart[name] for name in largest_first},
        lambda value: _shown(value, "3g"),
    )


def _table(title: str, values: Mapping[str, Any], form: Callable[[Any], str]) -> list[str]:
    if not values:
        return []
    width = max(map(len, values))
    return [
        f"{title}:",
        *(f"  {name or '(no family)':<{width}}  {form(value)}" for name, value in values.items()),
    ]


def _shown(value: float | None, digits: str) -> str:
    return "not finite" if value is None else f"{value:.{digits}}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
