"""What is said before the first step: the size of the network, the data, the memory, where files go."""

from dataclasses import dataclass

from diffmoe_scale.config.choices import describe_choices
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.reading.build import build_reader
from diffmoe_scale.encoders.autoencoder.build import latent_format
from diffmoe_scale.encoders.text.build import stream_widths
from diffmoe_scale.plan.parameters import ModelSize, count_parameters
from diffmoe_scale.train.engine import accumulation_steps
from diffmoe_scale.train.start import find_newest
from diffmoe_scale.words import counted

FP32_BYTES = 4
NUM_STATES = 4
"""Kept in fp32 for each parameter: the weights, two moments of AdamW or one of Muon, the moving average; a
second average is one more."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank for weights, gradients and optimizer state; activations and frozen networks come on
    top. `host` is the part that parallel.offload_optimizer keeps in the memory of the machine."""

    device: int
    host: int


def describe_run(config: Config, directory: RunDirectory, *, num_samples: int, ranks: int) -> list[str]:
    """Lines about a run on `ranks` ranks with `num_samples` training samples an epoch.

    Raises: ValueError if image, autoencoder, patches and channels do not fit each other.
    """
    size = count_parameters(config)
    return [
        _describe_network(size),
        _describe_data(config, num_samples),
        _describe_memory(estimate_memory(config, size, ranks=ranks), ranks),
        f"writes to {directory.path.resolve()}: a checkpoint every "
        f"{counted(config.checkpoint.every, 'step')}, of which the newest {config.checkpoint.keep_last} stay",
        *_describe_warmup(config),
        *describe_choices(config),
    ]


def describe_planned_run(config: Config, directory: RunDirectory, *, ranks: int) -> list[str]:
    """The same of a run that is not started, and where it would begin. Reads the data; writes nothing but
    missing indexes of shards, as any reader.

    Raises: ValueError for what would keep the run from its start.
    """
    newest = find_newest(directory)
    # A plan may assume the shapes of frozen networks that are not here; a run may not.
    latent_format(config.autoencoder)
    if config.model.conditioning == "text":
        stream_widths(config.text)
    accumulation_steps(config, ranks=ranks)
    readers = [
        build_reader(config.data, patterns, model=config.model, seed=config.run.seed, buckets=config.buckets)
        for patterns in (config.data.train, config.data.validation)
        if patterns
    ]
    beginning = "begins at step 1" if newest is None else f"continues from the checkpoint of step {newest}"
    return [
        *describe_run(config, directory, num_samples=readers[0].num_samples, ranks=ranks),
        f"{beginning}; nothing was trained (--dry-run)",
    ]


def estimate_memory(config: Config, size: ModelSize, *, ranks: int) -> Memory:
    """Of each rank, as ZeRO spreads it: states over all ranks, experts over the ranks of expert parallelism,
    gradients as states from stage 2 on."""
    num_experts = size.by_part.get("experts", 0)
    dense = size.total - num_experts
    held = dense + num_experts / config.parallel.expert_parallel
    owned = size.total / ranks
    weight_bytes = 2 if config.model.precision == "bf16" else FP32_BYTES
    gradients = FP32_BYTES * (held if config.parallel.zero_stage == 1 else owned)
    saved = size.matrices / ranks if config.optimizer.kind == "muon" else 0
    num_states = NUM_STATES + (config.optimizer.ema2_decay > 0)
    states = round(FP32_BYTES * (num_states * owned - saved))
    is_offloaded = config.parallel.offload_optimizer
    return Memory(
        device=round(weight_bytes * held + gradients) + (0 if is_offloaded else states),
        host=states if is_offloaded else 0,
    )


def _describe_network(size: ModelSize) -> str:
    experts = f"{counted(size.experts, 'expert')} in each MoE layer" if size.experts else "no experts"
    return (
        f"network: {size.total:,} parameters, of which a token activates {size.activated:,} on average; "
        f"{experts}; {counted(size.tokens_per_picture, 'token', ',')} a picture"
    )


def _describe_data(config: Config, num_samples: int) -> str:
    batch, steps = config.run.global_batch, config.run.steps
    return (
        f"data: {counted(num_samples, 'sample', ',')}, so an epoch is {num_samples / batch:,.1f} steps "
        f"of {batch:,} (run.global_batch); run.steps ({steps:,}) is {steps * batch / num_samples:,.2f} epochs"
    )


def _describe_memory(memory: Memory, ranks: int) -> str:
    host = f" and {_readable(memory.host)} of host memory" if memory.host else ""
    return (
        f"memory of a rank ({ranks} in all): {_readable(memory.device)}{host} for weights, gradients and "
        "optimizer state; activations and frozen networks come on top"
    )


def _readable(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"


def _describe_warmup(config: Config) -> list[str]:
    warmup, steps = config.optimizer.warmup_steps, config.run.steps
    if warmup <= steps:
        return []
    return [
        f"optimizer.warmup_steps is {warmup} but run.steps is {steps}: the warm-up takes "
        f"{counted(steps, 'step')}"
    ]
