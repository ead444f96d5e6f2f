"""The names of DiT (facebookresearch/DiT), which SiT and the DiffMoE reference (with its EC-DiT, TC-DiT and
dense siblings) share, and what their shapes say of a model.

D width, C channels of latents, P patch.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from diffmoe_scale.checkpoint.tensor_file import LazyTensor
from diffmoe_scale.convert.rules import Rule, computed, joined, reshaped, same
from diffmoe_scale.convert.time import NUM_FREQUENCIES, keep_velocity, reflect_time, restore_velocity
from diffmoe_scale.words import counted

PREFIX = "transformer."
POSITIONS = "pos_embed"
DECAY = "ema_decay"
THRESHOLD = "expert_threshold"
STEPS = "threshold_steps"
KEYS = ("x_embedder.proj.weight", "y_embedder.embedding_table.weight", "final_layer.linear.weight")
"""By which the family is recognised."""
SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What the shapes of a checkpoint say. Widths are 0 where there is no such network."""

    width: int
    depth: int
    patch: int
    channels: int
    outputs: int
    """C, or 2 C with sigma."""
    classes: int
    """Without the null class."""
    grid: int
    """Patches of a side; 0 if positions are not stored."""
    dense_width: int
    is_gated: bool
    num_experts: int = 0
    expert_width: int = 0
    shared_width: int = 0
    moe_blocks: tuple[int, ...] = ()
    router: str = "diffmoe"


def is_dit(names: Iterable[str]) -> bool:
    return set(KEYS) <= set(names)


def read_shapes(state: Mapping[str, LazyTensor]) -> Shapes:
    """Raises: ValueError naming what a model of ours cannot have."""
    _refuse_foreign_parts(state)
    width, channels, patch, _ = _shape(state, KEYS[0], 4)
    depth = 1 + max(
        (int(found[1]) for name in state if (found := re.match(r"blocks\.(\d+)\.", name))), default=-1
    )
    moe_blocks = tuple(block for block in range(depth) if f"blocks.{block}.mlp.experts.0.fc1.weight" in state)
    gated = tuple(b for b in range(depth) if f"blocks.{b}.mlp.experts.0.gate_proj.weight" in state)
    dense = next((block for block in range(depth) if block not in moe_blocks + gated), None)
    facts = {
        "num_experts": 0,
        "expert_width": 0,
        "shared_width": 0,
        "moe_blocks": moe_blocks + gated,
        "router": "diffmoe",
    }
    is_gated, dense_width = bool(gated), 0
    if dense is not None:
        is_gated = f"blocks.{dense}.mlp.gate_proj.weight" in state
        dense_width = _shape(state, f"blocks.{dense}.mlp.{'gate_proj' if is_gated else 'fc1'}.weight", 2)[0]
    if (moe_blocks and gated) or (moe_blocks and dense is not None and is_gated):
        raise ValueError("some networks are SwiGLU and others GELU; moe.activation is one for all")
    if facts["moe_blocks"]:
        facts |= _expert_shapes(state, (moe_blocks + gated)[0], is_gated=is_gated)
    grid = round(_shape(state, POSITIONS, 3)[1] ** 0.5) if POSITIONS in state else 0
    return Shapes(
        width=width,
        depth=depth,
        patch=patch,
        channels=channels,
        outputs=_shape(state, KEYS[2], 2)[0] // patch**2,
        classes=_shape(state, KEYS[1], 2)[0] - 1,
        grid=grid,
        dense_width=dense_width,
        is_gated=is_gated,
        **facts,  # type: ignore[arg-type]  # of those fields
    )


def _expert_shapes(state: Mapping[str, LazyTensor], block: int, *, is_gated: bool) -> dict[str, object]:
    start = f"blocks.{block}.mlp."
    experts = {
        found[1] for name in state if (found := re.match(rf"blocks\.{block}\.mlp\.experts\.(\d+)\.", name))
    }
    first = "gate_proj" if is_gated else "fc1"
    shared_width = 0
    if any(name.startswith(f"{start}shared_experts.") for name in state):
        if f"{start}shared_experts.{first}.weight" not in state:
            kinds = "GELU experts and a SwiGLU" if not is_gated else "SwiGLU experts and a GELU"
            raise ValueError(f"it has {kinds} shared expert; moe.activation is one for all")
        shared_width = _shape(state, f"{start}shared_experts.{first}.weight", 2)[0]
    router = "token_choice" if f"{start}gate.weight" in state else "expert_choice"
    return {
        "num_experts": len(experts),
        "expert_width": _shape(state, f"{start}experts.0.{first}.weight", 2)[0],
        "shared_width": shared_width,
        "router": "diffmoe" if f"{start}{THRESHOLD}" in state else router,
    }


def _refuse_foreign_parts(state: Mapping[str, LazyTensor]) -> None:
    for part, meaning in (
        ("attn.Wqkv.", "attention by flash-attn"),
        ("attn.q_norm.", "normalized queries and keys"),
        ("attn.k_norm.", "normalized queries and keys"),
    ):
        if found := [name for name in state if part in name]:
            raise ValueError(f"it has {meaning} ({found[0]}), for which there is no conversion")


def _shape(state: Mapping[str, LazyTensor], name: str, dims: int) -> tuple[int, ...]:
    if name not in state:
        raise ValueError(f"tensor {name} is missing")
    if len(state[name].shape) != dims:
        raise ValueError(f"{name} has shape {list(state[name].shape)}; expected {dims} dimensions")
    return state[name].shape


def dit_rules(shapes: Shapes, *, is_flow: bool) -> list[Rule]:
    """All weights. A flow's time runs the other way in theirs."""
    width, patch, channels = shapes.width, shapes.patch, shapes.channels
    ours, theirs = f"{PREFIX}patch_embedding.", "x_embedder.proj."
    rules = [
        reshaped(
            f"{ours}weight",
            f"{theirs}weight",
            ours_shape=(width, channels * patch**2),
            theirs_shape=(width, channels, patch, patch),
        ),
        same(f"{ours}bias", f"{theirs}bias"),
        *_linear("time_embedding.mlp.0", "t_embedder.mlp.0"),
        *_linear("time_embedding.mlp.2", "t_embedder.mlp.2"),
        same(f"{PREFIX}class_embedding.weight", "y_embedder.embedding_table.weight"),
        *_linear("final_modulation", "final_layer.adaLN_modulation.1"),
        *_linear("final_projection", "final_layer.linear"),
    ]
    for block in range(shapes.depth):
        rules += _block_rules(block, shapes)
    if is_flow:
        changed = {rule.ours: rule for rule in _flow_rules(shapes)}
        rules = [changed.get(rule.ours, rule) for rule in rules]
    return rules


def _linear(ours: str, theirs: str) -> list[Rule]:
    return [same(f"{PREFIX}{ours}.{kind}", f"{theirs}.{kind}") for kind in ("weight", "bias")]


def _block_rules(block: int, shapes: Shapes) -> list[Rule]:
    ours, theirs = f"blocks.{block}.", f"blocks.{block}."
    rules = [
        *_linear(f"{ours}attention.qkv", f"{theirs}attn.qkv"),
        *_linear(f"{ours}attention.projection", f"{theirs}attn.proj"),
        *_linear(f"{ours}modulation", f"{theirs}adaLN_modulation.1"),
    ]
    if block not in shapes.moe_blocks:
        return rules + _network(f"{ours}feed_forward", f"{theirs}mlp", is_gated=shapes.is_gated)
    ours, theirs = f"{PREFIX}{ours}feed_forward.", f"{theirs}mlp."
    gate = "gate.weight" if shapes.router == "token_choice" else "gate_weight"
    rules.append(same(f"{ours}router.weight", f"{theirs}{gate}"))
    for expert in range(shapes.num_experts):
        rules += _expert(f"{ours}experts.{expert}.", f"{theirs}experts.{expert}.", is_gated=shapes.is_gated)
    if shapes.shared_width:
        start = ours.removeprefix(PREFIX)
        rules += _network(f"{start}shared_experts", f"{theirs}shared_experts", is_gated=shapes.is_gated)
    if shapes.router == "diffmoe":
        start = f"{ours}router.predictor.".removeprefix(PREFIX)
        rules += _linear(f"{start}hidden", f"{theirs}capacity_predictor.0")
        rules += _linear(f"{start}output", f"{theirs}capacity_predictor.2")
    return rules


def _network(ours: str, theirs: str, *, is_gated: bool) -> list[Rule]:
    if not is_gated:
        return [*_linear(f"{ours}.w_in", f"{theirs}.fc1"), *_linear(f"{ours}.w_out", f"{theirs}.fc2")]
    return [
        joined(f"{PREFIX}{ours}.w_in.weight", f"{theirs}.gate_proj.weight", f"{theirs}.up_proj.weight"),
        same(f"{PREFIX}{ours}.w_out.weight", f"{theirs}.down_proj.weight"),
    ]


def _expert(ours: str, theirs: str, *, is_gated: bool) -> list[Rule]:
    if is_gated:
        return [
            joined(f"{ours}w_in", f"{theirs}gate_proj.weight", f"{theirs}up_proj.weight"),
            same(f"{ours}w_out", f"{theirs}down_proj.weight"),
        ]
    names = (("w_in", "fc1.weight"), ("b_in", "fc1.bias"), ("w_out", "fc2.weight"), ("b_out", "fc2.bias"))
    return [same(ours + mine, theirs + yours) for mine, yours in names]


def _flow_rules(shapes: Shapes) -> list[Rule]:
    """The rules that time's other direction changes."""
    outputs, channels, places = shapes.outputs, shapes.channels, shapes.patch**2
    first = (shapes.width, NUM_FREQUENCIES)
    rules = [
        computed(
            f"{PREFIX}time_embedding.mlp.0.weight",
            "t_embedder.mlp.0.weight",
            reflect_time,
            reflect_time,
            ours_shape=first,
            theirs_shape=first,
        )
    ]
    for kind, rest in (("weight", (shapes.width,)), ("bias", ())):
        rules.append(
            computed(
                f"{PREFIX}final_projection.{kind}",
                f"final_layer.linear.{kind}",
                lambda rows: keep_velocity(rows, outputs=outputs, channels=channels),
                lambda rows: restore_velocity(rows, outputs=outputs, channels=channels),
                ours_shape=(places * channels, *rest),
                theirs_shape=(places * outputs, *rest),
                is_exact=outputs == channels,
            )
        )
    return rules


def threshold_names(block: int) -> tuple[str, str, str, str]:
    """Our threshold and its count of updates, their threshold and its decay."""
    ours, theirs = f"{PREFIX}blocks.{block}.feed_forward.router.predictor.", f"blocks.{block}.mlp."
    return f"{ours}{THRESHOLD}_E", f"{ours}{STEPS}", f"{theirs}{THRESHOLD}", f"{theirs}{DECAY}"


def check_names(found: Iterable[str], expected: Iterable[str]) -> None:
    """Raises: ValueError naming tensors that are missing or left over."""
    missing, left = sorted({*expected} - {*found}), sorted({*found} - {*expected})
    if missing or left:
        parts = [
            f"{counted(len(names), 'tensor')} {what}, such as {', '.join(names[:SHOWN])}"
            for what, names in (("missing", missing), ("left over", left))
            if names
        ]
        raise ValueError("; ".join(parts))
