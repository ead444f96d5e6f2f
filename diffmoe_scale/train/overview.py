"""What is said before the first step: the size of the network, the data, the memory, where files go."""

from collections.abc import Sequence

import torch

from diffmoe_scale.config.check import require
from diffmoe_scale.config.choices import describe_choices
from diffmoe_scale.config.effect import describe_idle
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.order.size import Size
from diffmoe_scale.data.reading.build import open_reader
from diffmoe_scale.encoders.autoencoder.build import latent_format
from diffmoe_scale.encoders.text.build import stream_widths
from diffmoe_scale.parallel.context import check_world
from diffmoe_scale.plan.build import tokens_per_picture
from diffmoe_scale.plan.memory import plan_memory
from diffmoe_scale.plan.parameters import count_parameters
from diffmoe_scale.telemetry.code_version import code_version
from diffmoe_scale.train.engine import accumulation_steps
from diffmoe_scale.train.start import find_newest
from diffmoe_scale.words import counted


def check_ranks(config: Config, *, ranks: int) -> None:
    """Before they join. Raises: ValueError unless experts and the global batch split over so many ranks."""
    parallel, sequence_parallel = config.parallel, config.parallel.sequence_parallel
    check_world(ranks, expert_parallel=parallel.expert_parallel, sequence_parallel=sequence_parallel)
    check_token_counts(config, [Size(config.model.image_size, config.model.image_size)])
    accumulation_steps(config, ranks=ranks // sequence_parallel)


def describe_network(config: Config, *, ranks: int) -> list[str]:
    """Lines about the network and the memory of one of `ranks` ranks, which were checked. Not in a process
    that has joined the others: the plan of memory has a group of its own.

    Raises: ValueError if image, autoencoder, patches and channels do not fit each other.
    """
    size = count_parameters(config)
    experts = f"{counted(size.experts, 'expert')} in each MoE layer" if size.experts else "no experts"
    network = (
        f"network: {size.total:,} parameters, of which a token activates {size.activated:,} on average; "
        f"{experts}; {counted(size.tokens_per_picture, 'token', ',')} a picture"
    )
    return [network, _describe_memory(config, ranks)]


def describe_run(config: Config, directory: RunDirectory, *, num_samples: int) -> list[str]:
    """Lines about a run with `num_samples` training samples an epoch."""
    code = code_version()
    return [
        f"code: diffmoe_scale {code['version']}, commit {code['commit']}",
        _describe_data(config, num_samples),
        f"writes to {directory.path.resolve()}: a checkpoint every "
        f"{counted(config.checkpoint.every, 'step')}, of which the newest {config.checkpoint.keep_last} stay",
        *_describe_warmup(config),
        *describe_choices(config),
        *describe_idle(config),
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
    check_ranks(config, ranks=ranks)
    readers = [
        open_reader(config, patterns) for patterns in (config.data.train, config.data.validation) if patterns
    ]
    beginning = "begins at step 1" if newest is None else f"continues from the checkpoint of step {newest}"
    return [
        *describe_network(config, ranks=ranks),
        *describe_run(config, directory, num_samples=readers[0].num_samples),
        f"{beginning}; nothing was trained (--dry-run)",
    ]


def _describe_data(config: Config, num_samples: int) -> str:
    batch, steps = config.run.global_batch, config.run.steps
    return (
        f"data: {counted(num_samples, 'sample', ',')}, so an epoch is {num_samples / batch:,.1f} steps "
        f"of {batch:,} (run.global_batch); run.steps ({steps:,}) is {steps * batch / num_samples:,.2f} epochs"
    )


def _describe_memory(config: Config, ranks: int) -> str:
    """By the plan of a step, which takes about a second; routing is taken to be even."""
    is_gpu = torch.cuda.is_available()
    try:
        memory = plan_memory(config, ranks=ranks, is_gpu=is_gpu)
    except ValueError as error:  # training may go on all the same: its pools are larger than the plan's
        return f"memory of a rank ({ranks} in all): not planned, since {error}"
    host = f" and {_readable(memory.host)} of host memory" if memory.host else ""
    kept = memory.weights + memory.masters + memory.moments + memory.average
    return (
        f"memory of a rank ({ranks} in all): {_readable(memory.total)}{host} at most by the plan "
        f"({_readable(kept)} weights and optimizer state, {_readable(memory.gradients)} gradients, "
        f"{_readable(memory.activations)} activations); frozen networks come on top"
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


def check_token_counts(config: Config, sizes: Sequence[Size]) -> None:
    """Raises: ValueError for a size of images whose tokens do not split over parallel.sequence_parallel."""
    ranks, square = config.parallel.sequence_parallel, tokens_per_picture(config)
    for size in sizes:
        num_tokens = square * size.height * size.width // config.model.image_size**2
        require(
            num_tokens % ranks == 0,
            "parallel.sequence_parallel",
            ranks,
            f"a divisor of the {counted(num_tokens, 'token')} of images of {size.width} x {size.height}",
        )
