"""Memory of a rank over a training step: the engine's (`zero_memory`), and what the passes keep (`trace`)."""

from collections.abc import Iterator
from dataclasses import dataclass

from diffmoe_scale.config.schema import Config
from diffmoe_scale.model.networks import NUMBER_FORMATS
from diffmoe_scale.plan.trace import Part, Trace, trace_step
from diffmoe_scale.plan.zero_memory import FP32, ZeroMemory, ZeroSettings

MOMENTS = 2
SIMULATED = 3
"""Micro-batches of a step that differ: the first, those between, and the last."""


@dataclass(frozen=True)
class Memory:
    """Bytes of the rank that needs most, at the moment of a step when it does."""

    weights: int
    masters: int
    """fp32 weights that the optimizer updates."""
    moments: int
    average: int
    gradients: int
    """Gradients, buckets and copies of them."""
    activations: int
    """What a forward pass keeps for the backward, and what is at work; rows sent to experts among it."""
    moment: str
    """`forward`, `backward` or `update`."""
    host: int = 0
    """Beside the device's: with parallel.offload_optimizer."""

    @property
    def total(self) -> int:
        """Of the device."""
        states = self.masters + self.moments + self.average
        return self.weights + states + self.gradients + self.activations


def plan_memory(config: Config, *, ranks: int, is_gpu: bool) -> Memory:
    """Of each of `ranks` ranks. Raises: as `trace.trace_step`, ValueError if the batch does not split."""
    trace = _trace(config)
    settings = ZeroSettings(
        stage=config.parallel.zero_stage,
        weight_bytes=NUMBER_FORMATS[config.model.precision].itemsize,
        ranks=ranks,
        expert_parallel=config.parallel.expert_parallel,
        accumulation=config.run.global_batch // (config.run.micro_batch * ranks),
        overlaps=is_gpu,
    )
    places = sorted({0, ranks // 2, ranks - 1})
    found = [_memory_of_rank(trace, settings, rank) for rank in places]
    return max(found, key=lambda memory: memory.total)


_TRACES: dict[str, Trace] = {}
"""By what decides them: a search asks for the same again and again."""


def _trace(config: Config) -> Trace:
    sections = config.model, config.moe, config.text, config.autoencoder, config.diffusion
    key = repr((*sections, config.run.micro_batch, config.parallel.expert_parallel))
    if key not in _TRACES:
        _TRACES[key] = trace_step(
            config, num_samples=config.run.micro_batch, expert_parallel=config.parallel.expert_parallel
        )
    return _TRACES[key]


def _memory_of_rank(trace: Trace, settings: ZeroSettings, rank: int) -> Memory:
    zero = ZeroMemory(trace.parameters, settings, rank=rank)
    walk_step(trace, zero)
    states = FP32 * zero.share
    return Memory(
        weights=zero.weights,
        masters=states,
        moments=MOMENTS * states,
        average=states,
        gradients=zero.held_at_peak,
        activations=zero.peak - zero.held_at_peak,
        moment=zero.moment_of_peak,
    )


def walk_step(trace: Trace, zero: ZeroMemory) -> None:
    """Go through a step of the whole network, block by block."""
    level = kept = 0
    count = min(zero.settings.accumulation, SIMULATED)
    for number in range(count):
        zero.begin("forward", is_last=number == count - 1)
        for _, part in _parts(trace, trace.forward):
            zero.note(level + part.peak)
            level += part.end
        # What the last micro-batch left behind goes with its loss.
        level -= kept
        zero.begin("backward", is_last=number == count - 1)
        for block, part in reversed(list(_parts(trace, trace.backward))):
            for gradient in part.gradients:
                zero.note(level + gradient.peak)
                zero.take(_full_name(gradient.name, block), gradient, level + gradient.level)
            zero.note(level + part.peak)
            level += part.end
        kept = level
        zero.end_micro_batch()
    zero.begin("update", is_last=True)
    zero.step(level)


def _parts(trace: Trace, parts: dict[str, Part]) -> Iterator[tuple[int, Part]]:
    """The parts of a pass in the forward's order, each with the number of its block."""
    yield -1, parts["before"]
    for block, kind in enumerate(trace.order):
        yield block, parts[str(kind)]
    yield -1, parts["after"]


def _full_name(name: str, block: int) -> str:
    """The name in the whole network of a parameter of the block that stands for others."""
    prefix, _, rest = name.partition("blocks.")
    if block < 0 or prefix != "transformer.":
        return name
    return f"{prefix}blocks.{block}.{rest.partition('.')[2]}"
