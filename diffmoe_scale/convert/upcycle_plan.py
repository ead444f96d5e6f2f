"""How experts are made for another model, and whether its first answer is the source's.

Experts that are copies answer g * scale times what the dense network does, g being the gate of a router of
zeros. Whether the sum is the dense network's answer depends on how many of them each token gets.
"""

from dataclasses import dataclass, field
from typing import Literal

from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.config.schema import Config
from diffmoe_scale.moe.selection import training_capacity
from diffmoe_scale.words import counted

ROUTERS = ("diffmoe", "expert_choice", "token_choice")
"""For which it is known what the first answer of copies is."""
Kind = Literal["same", "shared", "copies", "repeat", "mean", "dense"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`same`: layers are kept. `shared`: the dense network is the shared expert, and experts answer 0.
    `copies`: experts are (pieces of) the dense network. `repeat`, `mean`: more or fewer experts. `dense`: the
    dense network is the shared expert, or the mean of the experts."""

    kind: Kind
    pieces: int = 1
    """G, of a dense network."""
    scale: float = 1.0
    """Of the outputs of experts, or of the dense network."""
    is_router_tiny: bool = False
    """All scores are equal but for a hundred-thousandth, which decides."""
    lines: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


def plan_experts(before: Config, after: Config, *, noise: float) -> Plan:
    """Raises: ValueError naming settings by which no experts can be made."""
    old, new = before.moe.num_experts, after.moe.num_experts
    router = after.moe.router if new else before.moe.router
    if old != new and router not in ROUTERS:
        raise ValueError(
            f"moe.router is {router!r}, for which experts are not made of others; expected one of "
            f"{', '.join(ROUTERS)}"
        )
    if old == 0 and new > 0:
        return _of_dense(after, noise)
    if old > 0 and new == 0:
        return _to_dense(before)
    if old != new:
        return _of_number(before.moe, after.moe, noise)
    if noise:
        raise ValueError(f"--noise is {noise:g}; expected 0: no expert is made anew")
    return Plan(kind="same")


def dense_width(config: Config) -> int:
    return round(config.model.feed_forward_ratio * config.model.width)


def expert_width(config: Config) -> int:
    return round(config.moe.expert_width_ratio * config.model.width)


def taken(moe: MoEConfig) -> float:
    """Experts that a token gets in the first step, on average."""
    return float(moe.top_k) if moe.router == "token_choice" else training_capacity(moe, 1)


def first_gate(moe: MoEConfig) -> float:
    """g. Raises: ValueError for a gate that is 0."""
    match moe.gate:
        case "softmax":
            return 1 / moe.num_experts
        case "sigmoid":
            return 0.5
        case "identity":
            raise ValueError(
                "moe.gate is 'identity', which is 0 at first: copies would answer nothing; "
                "set moe.shared_experts so that the shared expert is the dense network, or another moe.gate"
            )


def _of_dense(after: Config, noise: float) -> Plan:
    moe, dense, wide = after.moe, dense_width(after), expert_width(after)
    pieces = _pieces(after)
    if moe.shared_experts:
        if moe.shared_experts * wide != dense:
            raise ValueError(
                f"moe.shared_experts is {moe.shared_experts} of width {wide}; expected together {dense}, the "
                "width of the dense network, which becomes the shared expert; or 0"
            )
        made = "copies" if pieces == 1 else f"copies of {pieces} pieces"
        line = (
            f"experts: {moe.num_experts}, {made} with outputs of 0, beside the dense network as shared expert"
        )
        return Plan(kind="shared", pieces=pieces, scale=0.0, lines=[line])
    if moe.num_experts % pieces:
        raise ValueError(
            f"moe.num_experts is {moe.num_experts}; expected a multiple of {pieces}, the pieces of width "
            f"{wide} (moe.expert_width_ratio) that the dense network is cut into"
        )
    count, scale = taken(moe), pieces / (taken(moe) * first_gate(moe))
    if moe.router == "token_choice":
        reasons = [] if count % pieces == 0 else [f"moe.top_k is {moe.top_k}, no multiple of {pieces} pieces"]
    elif count == moe.num_experts:
        reasons = []
    else:
        reasons = [
            f"a token gets from none to all of the experts, {count:g} on average, so that the sum is the "
            "dense network's in the mean over tokens only (equal with moe.shared_experts, with moe.router "
            "token_choice, or from a capacity of moe.num_experts downward by moe.capacity_steps)"
        ]
    if noise:
        reasons.append(f"--noise is {noise:g}")
    made = (
        "copies of the dense network"
        if pieces == 1
        else f"{counted(moe.num_experts // pieces, 'copy')} of {pieces} pieces of the dense network"
    )
    line = f"experts: {moe.num_experts}, {made}, outputs times {scale:g}"
    return Plan(
        kind="copies",
        pieces=pieces,
        scale=scale,
        is_router_tiny=not reasons,
        lines=[line],
        reasons=reasons,
    )


def _pieces(config: Config) -> int:
    dense, wide = dense_width(config), expert_width(config)
    if dense % wide:
        raise ValueError(
            f"moe.expert_width_ratio is {config.moe.expert_width_ratio:g}, which makes experts {wide} wide; "
            f"expected a divisor of {dense}, the width of the dense network (model.feed_forward_ratio)"
        )
    return dense // wide


def _to_dense(before: Config) -> Plan:
    moe, dense, wide = before.moe, dense_width(before), expert_width(before)
    if moe.shared_experts:
        if moe.shared_experts * wide != dense:
            raise ValueError(
                f"moe.shared_experts is {moe.shared_experts} of width {wide}; only one as wide as the dense "
                f"network ({dense}) can become it"
            )
        reason = "what experts add to the shared expert is left out"
        return Plan(kind="dense", lines=["dense networks: the shared experts"], reasons=[reason])
    pieces = _pieces(before)
    if moe.num_experts % pieces:
        raise ValueError(
            f"moe.num_experts is {moe.num_experts}, no multiple of {pieces}, the experts of width "
            f"{wide} that make a dense network of width {dense}"
        )
    scale = taken(moe) * first_gate(moe) / pieces
    line = f"dense networks: means of {moe.num_experts // pieces} experts, outputs times {scale:g}"
    return Plan(
        kind="dense", pieces=pieces, scale=scale, lines=[line], reasons=["a mean of experts is none of them"]
    )


def _of_number(old: MoEConfig, new: MoEConfig, noise: float) -> Plan:
    more, fewer = max(old.num_experts, new.num_experts), min(old.num_experts, new.num_experts)
    if more % fewer:
        raise ValueError(
            f"moe.num_experts was {old.num_experts}, is {new.num_experts}; expected a multiple or a divisor"
        )
    ratio, times = new.num_experts / old.num_experts, taken(new) / taken(old)
    scale = (ratio if new.gate == "softmax" else 1.0) / times
    if ratio < 1:
        if noise:
            raise ValueError(f"--noise is {noise:g}; expected 0: no expert is copied")
        line = f"experts: means of {more // fewer} of {more}, outputs times {scale:g}"
        return Plan(kind="mean", scale=scale, lines=[line], reasons=["a mean of experts is none of them"])
    is_one = old.router == "token_choice" and old.top_k == new.top_k == 1
    unit = "moe.top_k" if old.router == "token_choice" else "moe.capacity"
    reasons = []
    if times != ratio and not is_one:
        reasons.append(f"a token gets {times:g} times as many experts; {ratio:g} times are equal ({unit})")
    if noise:
        reasons.append(f"--noise is {noise:g}")
    line = f"experts: each of {fewer} {ratio:g} times, outputs times {scale:g}"
    if not is_one and not noise:
        line += "; copies that take the same tokens learn the same: --noise tells them apart"
    return Plan(kind="repeat", scale=scale, is_router_tiny=is_one, lines=[line], reasons=reasons)
