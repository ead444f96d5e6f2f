"""Memory of a rank over a training step: the engine's (`zero_memory`), and what the passes keep (`trace`)."""

from dataclasses import dataclass, replace

from diffmoe_scale.config.schema import Config
from diffmoe_scale.nn.number_formats import NUMBER_FORMATS
from diffmoe_scale.plan.build import tokens_per_picture
from diffmoe_scale.plan.trace import Trace, trace_step
from diffmoe_scale.plan.zero_memory import FP32, ZeroMemory, ZeroSettings

POOL_BYTES = 34
"""For each expert and token of a pool that ranks share: scores and predictions in fp32, twice, masks, and the
count of equal scores in int64."""
SIMULATED = 2
"""Micro-batches of a step that differ: the last, and those before."""


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
    frozen: int = 0
    """Text encoders and autoencoder, where their weights are on this machine."""
    host: int = 0
    """Beside the device's: with parallel.offload_optimizer."""

    @property
    def total(self) -> int:
        """Of the device."""
        states = self.masters + self.moments + self.average
        return self.weights + states + self.gradients + self.activations + self.frozen


def plan_memory(config: Config, *, ranks: int, is_gpu: bool, trace: Trace | None = None) -> Memory:
    """Of each of `ranks` ranks, by `trace` or a new one. Raises: as `trace.trace_step`."""
    sequence_parallel = config.parallel.sequence_parallel
    settings = ZeroSettings(
        stage=config.parallel.zero_stage,
        weight_bytes=NUMBER_FORMATS[config.model.precision].itemsize,
        gradient_bytes=NUMBER_FORMATS[config.parallel.gradient_format].itemsize,
        ranks=ranks,
        expert_parallel=config.parallel.expert_parallel,
        accumulation=config.run.global_batch * sequence_parallel // (config.run.micro_batch * ranks),
        overlaps=is_gpu,
        has_muon=config.optimizer.kind == "muon",
    )
    # With gradients in fp32 whole parameters are copied, of which a rank may own a part only.
    is_even = settings.weight_bytes != FP32
    places = {0} if is_even else {0, ranks // 2, ranks - 1}
    trace = trace or trace_of(config)
    memory = max((_memory_of_rank(trace, settings, rank) for rank in places), key=lambda memory: memory.total)
    num_averages = 1 + (config.optimizer.ema2_decay > 0)
    memory = replace(memory, average=num_averages * memory.average)
    # Approximate: what a rank has of captions is not divided.
    activations = memory.activations // sequence_parallel + _pool_bytes(config, ranks)
    memory = replace(memory, activations=activations)
    return _offloaded(memory, config) if config.parallel.offload_optimizer else memory


def _pool_bytes(config: Config, ranks: int) -> int:
    """Of the scores and predictions that ranks gather where they share one pool, at the moment of choice."""
    moe = config.moe
    sequence_parallel = config.parallel.sequence_parallel
    sharing = {"expert_parallel": config.parallel.expert_parallel, "data_parallel": ranks}.get(
        moe.pool, sequence_parallel
    )
    if sharing == 1 or not moe.num_experts:
        return 0
    tokens = sharing * config.run.micro_batch * tokens_per_picture(config) // sequence_parallel
    return POOL_BYTES * moe.num_experts * tokens


def _offloaded(memory: Memory, config: Config) -> Memory:
    """With states in the memory of the machine. Approximate: not measured on a GPU."""
    host = memory.masters + memory.moments + memory.average
    # DeepSpeed keeps gradients of the rank's share there, and a copy of its weights in the model's format.
    copies = memory.masters + memory.masters // FP32 * NUMBER_FORMATS[config.model.precision].itemsize
    return replace(memory, masters=0, moments=0, average=0, host=host + copies)


_TRACES: dict[str, Trace] = {}
"""By what decides them: a search asks for the same again and again."""


def trace_of(config: Config) -> Trace:
    """Of the config's micro-batch. Raises: as `trace.trace_step`."""
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
        moments=FP32 * zero.moments,
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
        for part in trace.whole(trace.forward):
            zero.note(level + part.peak)
            level += part.end
        # What the last micro-batch left behind goes with its loss.
        level -= kept
        zero.begin("backward", is_last=number == count - 1)
        backward = list(enumerate(trace.whole(trace.backward), start=-1))
        for block, part in reversed(backward):
            for gradient in part.gradients:
                zero.note(level + gradient.peak)
                zero.take(_full_name(gradient.name, block), gradient, level + gradient.level)
            zero.note(level + part.peak)
            level += part.end
        kept = level
        zero.end_micro_batch()
    zero.begin("update", is_last=True)
    zero.step(level)


def _full_name(name: str, block: int) -> str:
    """The name in the whole network of a parameter of the block that stands for others."""
    prefix, _, rest = name.partition("blocks.")
    if prefix != "transformer.":
        return name
    return f"{prefix}blocks.{block}.{rest.partition('.')[2]}"
