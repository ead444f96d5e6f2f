"""A model that begins as another one answers: experts of a dense network, another number of experts, a dense
network of experts, more blocks, another size of pictures.

E experts, G pieces that a dense network is cut into, g the gate of a router of zeros.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from diffmoe_scale.checkpoint.stored import StoredWeights, different_settings
from diffmoe_scale.checkpoint.tensor_file import LazyTensor
from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.identity import model_settings
from diffmoe_scale.config.load import config_tree, make_config
from diffmoe_scale.config.schema import Config
from diffmoe_scale.convert.export import select_weights
from diffmoe_scale.convert.grow_depth import grow_depth, plan_blocks
from diffmoe_scale.convert.grow_layer import Layers, Plan
from diffmoe_scale.convert.upcycle_plan import plan_experts
from diffmoe_scale.convert.verify import (
    Question,
    ask,
    check_tensors,
    difference,
    explain_numbers,
    make_question,
)
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.words import counted

TOLERANCE = 1e-4
"""Of the largest output, where the first step is to be the source's."""
NO_FILE = Path("no file")
PLACES = ("model.image_size", "model.position_size")
KEPT_KEYS = ("fingerprint", "tokenizer_sha256")


@dataclass(frozen=True)
class Grown:
    """Weights of the other model, and what is said of them."""

    stored: StoredWeights
    plan: Plan
    reasons: list[str]
    """Why its answer is not the source's; empty if it is, to round-off."""


def grow(stored: StoredWeights, settings: Sequence[str], *, noise: float = 0.0) -> Grown:
    """Every family's weights for the model that `settings` make of the source's. `noise` is in standard
    deviations of a matrix, for experts that are copies.

    Raises: ValueError naming a setting that cannot change so.
    """
    before = stored.config
    after = make_config(config_tree(before), settings)
    identity = _identity(after, stored)
    _refuse_other_changes(stored, identity, before, after)
    blocks = plan_blocks(before, after.model.depth)
    deeper = replace(before, model=replace(before.model, depth=after.model.depth))
    plan = plan_experts(deeper, after, noise=noise)
    layers = Layers(deeper, after, plan, noise)
    tensors: dict[str, LazyTensor] = {}
    for family in stored.families:
        held = grow_depth(stored.family(family), before.model, blocks)
        held = layers.buffers(held) if family == "buffer" else layers.weights(held)
        tensors |= {f"{family}/{name}": tensor for name, tensor in held.items()}
    if "buffer" not in stored.families:
        tensors |= {f"buffer/{name}": tensor for name, tensor in layers.buffers({}).items()}
    reasons = list(plan.reasons)
    if moved := after.model.other_places(before.model):
        reasons.append(moved)
    grown = replace(stored, tensors=dict(sorted(tensors.items())), config=after, settings=identity, origin={})
    return Grown(grown, plan, reasons)


def upcycle(
    stored: StoredWeights, weights: str, settings: Sequence[str], *, noise: float, is_verified: bool
) -> tuple[StoredWeights, list[str]]:
    """The same, and lines about it: what was made of what, and how the first answer compares with the
    source's, for the first family of `weights`.

    Raises: ValueError; RunError if the answer is to be the source's and is not.
    """
    stored = select_weights(stored, weights)
    check_tensors(stored.config, stored)
    grown = grow(stored, settings, noise=noise)
    lines = list(grown.plan.lines)
    before, after = stored.config.model.depth, grown.stored.config.model.depth
    if after > before:
        lines.append(f"depth: {counted(after - before, 'block')} added: copies that add 0")
    size, model = stored.config.model.image_size, grown.stored.config.model
    if size != model.image_size and not model.other_places(stored.config.model):
        lines.append(f"pictures of {model.image_size} x {model.image_size} have interpolated positions")
    family = next(name for name in stored.families if name != "buffer")
    off = float("nan")
    if is_verified:
        with explain_numbers(stored):
            off = compare(stored, grown.stored, family)
    measured = f"; the output differs by {off:.2g}" if is_verified else ""
    if grown.reasons:
        lines.append(f"step 0 is not the source's: {'; '.join(grown.reasons)}{measured}")
        return grown.stored, lines
    if is_verified and not off <= TOLERANCE:
        raise RunError(
            f"the first output was to be the source's, but differs by {off:.3g} of the largest; tolerance "
            f"{TOLERANCE:g}; nothing was written"
        )
    lines.append(f"step 0 is the source's to round-off{measured} (tolerance {TOLERANCE:g})")
    return grown.stored, lines


def compare(stored: StoredWeights, grown: StoredWeights, family: str) -> float:
    """The difference of both models' answers in the first step of a training, in which experts take the top
    K, relative to the largest."""
    question = make_question(stored.config)
    return difference(_first_answer(grown, family, question), _first_answer(stored, family, question))


def _first_answer(stored: StoredWeights, family: str, question: Question) -> Tensor:
    return ask(stored, family, question, Selection("static", step=1))


def _identity(config: Config, stored: StoredWeights) -> dict[str, dict[str, object]]:
    """The new model's identity, with what the source's says of its tokenizer and frozen networks."""
    identity = model_settings(config, tokenizer=NO_FILE, frozen={})
    for section, entries in stored.settings.items():
        for key in KEPT_KEYS:
            if key in entries:
                identity[section][key] = entries[key]
    return identity


def _refuse_other_changes(
    stored: StoredWeights, identity: dict[str, dict[str, object]], before: Config, after: Config
) -> None:
    is_other_kind = (before.moe.num_experts == 0) != (after.moe.num_experts == 0)
    wrong = []
    for change in different_settings(stored.settings, identity):
        name = change.partition(" ")[0]
        is_free = name in ("model.depth", *PLACES, "moe.num_experts")
        if is_other_kind and name.startswith("moe.") and name != "moe.activation":
            is_free = True
        if not is_free:
            wrong.append(change)
    if wrong:
        allowed = f"moe.num_experts, model.depth, {' and '.join(PLACES)}"
        others = ", and with experts from a dense model all of moe but moe.activation"
        raise ValueError(f"{'; '.join(wrong)}: weights can be made for another {allowed}{others}")
