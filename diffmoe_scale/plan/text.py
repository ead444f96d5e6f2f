"""A plan as text: what a model costs, where its memory goes, how fast it would be, which layouts fit."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict

from diffmoe_scale.plan.flops import Flops
from diffmoe_scale.plan.memory import Memory
from diffmoe_scale.plan.network import Transfer
from diffmoe_scale.plan.parameters import ModelSize
from diffmoe_scale.plan.search import Plan
from diffmoe_scale.telemetry.hardware import GIB

SHOWN_LAYOUTS = 8
MEMORY_WORDS = {
    "weights": "weights",
    "masters": "fp32 weights of the optimizer",
    "moments": "moments of the optimizer",
    "average": "weight average",
    "gradients": "gradients, buckets, their copies",
    "activations": "activations, tokens sent to experts",
    "frozen": "text encoders and autoencoder",
}
UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
TIME_WORDS = {
    "products": "matrix products and attention",
    "other_operations": "other operations",
    "waiting_for_launches": "waiting for kernel launches",
    "all_to_all": "tokens to experts and back",
    "gradients": "gradients, not hidden by the backward pass",
    "weights": "gathering of new weights",
    "update": "update of the weights",
}


def gigabytes(count: int) -> str:
    """Of bytes; what would be 0.0 GB in a smaller unit."""
    unit, scale = next(((unit, scale) for unit, scale in UNITS if count >= 0.1 * scale), UNITS[-1])
    return f"{count / scale:,.1f} {unit}"


def table(rows: Iterable[Sequence[str]]) -> list[str]:
    """Aligned columns: the first to the left, the others to the right."""
    cells = [list(row) for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def describe_model(size: ModelSize, flops: Flops) -> list[str]:
    """Parameters and operations of a picture, by part."""
    parts = sorted(size.by_part, key=lambda part: -size.by_part[part])
    rows = [("part", "parameters (M)", "forward (GFLOP)", "backward (GFLOP)")]
    rows += [
        (
            part,
            f"{size.by_part[part] / 1e6:,.1f}",
            f"{flops.forward.get(part, 0.0) / 1e9:,.1f}",
            f"{flops.backward.get(part, 0.0) / 1e9:,.1f}",
        )
        for part in parts
    ]
    forward, backward = sum(flops.forward.values()), sum(flops.backward.values())
    rows.append(("together", f"{size.total / 1e6:,.1f}", f"{forward / 1e9:,.1f}", f"{backward / 1e9:,.1f}"))
    repeated = f"; activation checkpointing repeats {flops.recomputed / 1e9:,.1f}" if flops.recomputed else ""
    return [
        f"model: {size.total / 1e9:.3f} B parameters, {size.activated / 1e9:.3f} B activated; "
        f"{size.moe_layers} layers of {size.experts} experts; {size.tokens_per_picture:,} tokens a picture",
        f"operations of a picture: {flops.model / 1e9:,.1f} GFLOP forward and backward{repeated}",
        *table(rows),
    ]


def describe_memory(memory: Memory, *, usable: int) -> list[str]:
    """Where the bytes of the fullest rank go."""
    sizes = asdict(memory)
    rows = [(words, f"{sizes[name] / GIB:.2f}") for name, words in MEMORY_WORDS.items() if sizes[name]]
    rows.append((f"together, at its most in the {memory.moment}", f"{memory.total / GIB:.2f}"))
    rows.append(("usable", f"{usable / GIB:.2f}"))
    if memory.host:
        rows.append(("in the memory of the machine, for each GPU", f"{memory.host / GIB:.2f}"))
    return ["memory of a GPU (GiB)", *(f"  {line}" for line in table(rows))]


def describe_time(plan: Plan, ranks: int) -> list[str]:
    """How long a step takes, and what of it."""
    seconds = asdict(plan.time)
    rows = [
        (words, f"{1000 * seconds[name]:,.1f}") for name, words in TIME_WORDS.items() if seconds[name] > 1e-6
    ]
    rows.append(("together", f"{1000 * plan.time.total:,.1f}"))
    return [
        f"step (ms; estimate, not measured): {plan.images_per_s:,.0f} images/s on {ranks} GPUs, "
        f"{plan.images_per_s / ranks:,.1f} on each; MFU {100 * plan.mfu:.1f} %",
        *(f"  {line}" for line in table(rows)),
    ]


def describe_transfers(transfers: Sequence[Transfer]) -> list[str]:
    """What a rank sends."""
    rows = [("sent by a GPU in a step", "group", "GB", "ms")]
    rows += [
        (transfer.what, transfer.group, f"{transfer.bytes / 1e9:.2f}", f"{1000 * transfer.seconds:.1f}")
        for transfer in transfers
    ]
    return table(rows) if transfers else []


def describe_search(plans: Sequence[Plan]) -> list[str]:
    """The fastest layouts that fit, and what each other one lacks at its smallest micro-batch."""
    fitting = [plan for plan in plans if plan.fits]
    lines = [f"layouts that fit: {len(fitting)} (estimates, not measured), the fastest first"]
    lines += [f"  {line}" for line in table(map(_row, fitting[:SHOWN_LAYOUTS]))] if fitting else []
    lacking = [plan for plan in plans if not plan.fits]
    if lacking:
        lines.append("layouts that do not fit, and larger micro-batches of each do not either")
        rows = [(str(plan.layout), f"lacks {gigabytes(-plan.free_bytes)}") for plan in lacking]
        lines += [f"  {line}" for line in table(rows)]
    return lines


def _row(plan: Plan) -> tuple[str, ...]:
    speed = f"{plan.images_per_s:,.0f} images/s"
    return str(plan.layout), speed, f"MFU {100 * plan.mfu:.1f} %", f"{gigabytes(plan.free_bytes)} free"
