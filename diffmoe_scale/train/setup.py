"""From settings to a run that stands at its newest checkpoint or at its start."""

import logging
import os
from collections.abc import Sequence

import torch

from diffmoe_scale.checkpoint.store import CheckpointStore
from diffmoe_scale.config.identity import model_settings
from diffmoe_scale.config.load import changed_settings, dump_config
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.features.check import check_features, check_teacher
from diffmoe_scale.data.order.plan import BatchPlan
from diffmoe_scale.data.reading.build import open_reader
from diffmoe_scale.data.reading.reader import Reader, iterate_captions
from diffmoe_scale.data.shards.record import record_shards
from diffmoe_scale.encoders.text.streams import TextEncoders
from diffmoe_scale.encoders.text.tokenizer import train_tokenizer
from diffmoe_scale.files import replace_file
from diffmoe_scale.model.networks import Networks, build_networks
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.parallel.waiting import wait_for_ranks
from diffmoe_scale.train.alignment import Alignment, build_alignment
from diffmoe_scale.train.cautions import caution_of_captions, caution_of_guidance, caution_of_masters
from diffmoe_scale.train.engine import Engine, accumulation_steps
from diffmoe_scale.train.guard import Guard
from diffmoe_scale.train.initialize import begin_from_weights, copy_tokenizer
from diffmoe_scale.train.overview import check_token_counts, describe_run
from diffmoe_scale.train.resume import resume
from diffmoe_scale.train.sample_metrics import SampleMetrics
from diffmoe_scale.train.stop import StopSignals
from diffmoe_scale.train.trainer import Training
from diffmoe_scale.train.validation import Validation

logger = logging.getLogger(__name__)

TOKENIZER_CAPTIONS = 100_000
JUDGED_CAPTIONS = 1000


def set_up(config: Config, context: ParallelContext, directory: RunDirectory) -> Training:
    """All that a run consists of, at its newest checkpoint or at the start. Collective over the world."""
    torch.set_float32_matmul_precision(config.run.matmul_precision)
    choose_kernels(is_deterministic=config.run.deterministic)
    accumulation_steps(config, ranks=context.data_ranks)  # refuses, before the slow work
    reader = open_reader(config, config.data.train)
    plan = make_plan(config, reader)
    if context.is_main:
        say_overview(config, directory, reader)
        prepare_tokenizer(config, directory, reader)
    # Files are read, perhaps over a network: longer than a collective may take. So are all that follow.
    wait_for_ranks(context.waiting_group)
    networks = build_networks(
        config,
        tokenizer_path=directory.tokenizer,
        groups=context.megatron_groups,
        device=context.device,
        waiting_group=context.waiting_group,
        reads_captions=False,
    )
    wait_for_ranks(context.waiting_group)
    engine = Engine(networks.denoiser, config, context)
    if context.is_main:
        warn(config, networks, engine, reader)
    wait_for_ranks(context.waiting_group)
    store = open_store(engine, config, context, directory)
    alignment = build_alignment(config, context, networks.denoiser)
    start = resume(store, engine, config, directory, frozen=networks.frozen, alignment=alignment)
    identity = model_settings(config, tokenizer=directory.tokenizer, frozen=networks.frozen)
    begin_from_weights(engine, config, context, step=start.step, settings=identity)
    position = plan.position(step=start.step, samples=start.samples, by_bucket=start.samples_by_bucket)
    if context.is_main:
        record_config(config, directory)
    guard = Guard(config.defence, context)
    guard.restore(start.guard)
    validation = Validation(config, context, directory, networks, reader)
    prepare_features([reader, validation.reader], networks, config, alignment)
    if context.is_main:
        record_data(reader, validation.reader, directory)
    wait_for_ranks(context.waiting_group)
    batches = reader.batches(plan, position, dp_rank=context.data_rank, dp_size=context.data_ranks)
    return Training(
        config=config,
        context=context,
        directory=directory,
        networks=networks,
        engine=engine,
        alignment=alignment,
        store=store,
        validation=validation,
        sample_metrics=load_sample_metrics(config, context, networks, validation, reader),
        reader=reader,
        plan=plan,
        batches=batches,
        guard=guard,
        stop=StopSignals(),
        step=start.step,
        position=position,
        line=start.line,
    )


def open_store(
    engine: Engine, config: Config, context: ParallelContext, directory: RunDirectory
) -> CheckpointStore:
    """The run's checkpoints; before the engine changes anything it waits for their copies."""
    store = CheckpointStore(directory.checkpoints, config.checkpoint, group=context.checkpoint_group)
    engine.before_change = store.wait_for_copy
    return store


def make_plan(config: Config, reader: Reader) -> BatchPlan:
    """What each step takes. Raises: ValueError if the tokens of some images do not split over their ranks."""
    plan = reader.plan(global_batch=config.run.global_batch, micro_batch=config.run.micro_batch)
    check_token_counts(config, [shape.size for _, shapes in plan.stages for shape in shapes])
    return plan


def load_sample_metrics(
    config: Config,
    context: ParallelContext,
    networks: Networks,
    validation: Validation,
    train_reader: Reader,
) -> SampleMetrics | None:
    """None where they are not asked for. Collective over the world. Raises: ValueError for wrong files."""
    if not config.telemetry.metrics_every:
        return None
    reader = validation.reader or train_reader
    return SampleMetrics(config, context, networks, sampling=validation.sampling, reader=reader)


def say_overview(config: Config, directory: RunDirectory, reader: Reader) -> None:
    """One log line for each thing to know before the first step."""
    for line in describe_run(config, directory, num_samples=reader.num_samples):
        logger.info("%s", line)


def choose_kernels(*, is_deterministic: bool) -> None:
    """Deterministic kernels where torch has them, or the fastest."""
    # cuBLAS reads it when CUDA starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(is_deterministic, warn_only=True)
    # torch would fill every new tensor, to make reading uninitialised memory repeatable; nothing here reads
    # any. The switch is a property that stubs lack.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def prepare_tokenizer(config: Config, directory: RunDirectory, reader: Reader) -> None:
    """Train the tokenizer of the run's captions, unless an earlier start did or `run.initialize_from` has
    one. For the main rank, before the others read it."""
    if (
        config.model.conditioning == "text"
        and config.text.trained is not None
        and not directory.tokenizer.is_file()
    ):
        directory.path.mkdir(parents=True, exist_ok=True)
        if copy_tokenizer(config, directory):
            return
        train_tokenizer(
            iterate_captions(reader, TOKENIZER_CAPTIONS),
            vocabulary=config.text.vocabulary,
            path=directory.tokenizer,
        )


def warn(config: Config, networks: Networks, engine: Engine, reader: Reader) -> None:
    """Of what would cost quality without an error."""
    for line in [*caution_of_guidance(config), *caution_of_masters(engine.zero.masters)]:
        logger.warning("%s", line)
    warn_of_captions(networks.text_encoders, reader)


def warn_of_captions(text_encoders: TextEncoders, reader: Reader) -> None:
    """Say so if more than one caption in a hundred is longer than `text.max_tokens`, or if they are short,
    judged by a thousand of them."""
    captions = list(iterate_captions(reader, JUDGED_CAPTIONS)) if text_encoders.encoders else []
    for line in caution_of_captions(captions):
        logger.warning("%s", line)
    for name, encoder in zip(text_encoders.names, text_encoders.encoders, strict=True):
        encoder.tokenize(captions)
        share = encoder.tokenizer.num_cut / encoder.tokenizer.num_captions
        if share > 0.01:
            logger.warning(
                "%.0f %% of the captions are longer than the %d tokens that text encoder %s reads, and "
                "cut; raise its max_tokens",
                100 * share,
                encoder.tokenizer.max_tokens,
                name,
            )


def prepare_features(
    readers: Sequence[Reader | None], networks: Networks, config: Config, alignment: Alignment | None
) -> None:
    """What shards hold fits, and what they lack can be computed; the first reader is training's. Raises:
    ValueError for features of other networks."""
    refuse_other_features(readers, networks, config)
    trained = readers[0].source.features if readers[0] is not None else None
    if alignment is not None and trained is not None:
        check_teacher(trained.source, teacher=alignment.fingerprint, patch=config.model.patch_size)
    load_text_encoders(readers, networks, config)


def load_text_encoders(readers: Sequence[Reader | None], networks: Networks, config: Config) -> None:
    """Read the weights of frozen text encoders, unless every shard holds the captions' features and no
    pictures are drawn."""
    encodes = any(reader is not None and not reader.source.has_text_features for reader in readers)
    if encodes or config.telemetry.sample_every or config.telemetry.metrics_every:
        networks.text_encoders.load(networks.device)
    elif networks.text_encoders.frozen:
        logger.info("frozen text encoders are not loaded: the shards hold the captions' features")


def refuse_other_features(readers: Sequence[Reader | None], networks: Networks, config: Config) -> None:
    """Raise ValueError if shards hold features of another autoencoder or text encoder than this run's."""
    for features in [reader.source.features for reader in readers if reader is not None]:
        if features is not None:
            check_features(features.source, **networks.frozen, is_flipped=config.data.horizontal_flip)


def record_data(reader: Reader, held_out: Reader | None, directory: RunDirectory) -> None:
    """Write what the shards hold that this start found."""
    validation = None if held_out is None else held_out.catalog
    record_shards(reader.catalog, directory.shards, validation=validation)


def record_config(config: Config, directory: RunDirectory) -> None:
    """Write RUN/config.yaml once it is known to fit the checkpoints there."""
    text = dump_config(config)
    if directory.config.is_file() and directory.config.read_text(encoding="utf-8") != text:
        changed = "; ".join(changed_settings(directory.config, config)) or "none in meaning"
        logger.info(
            "settings that differ from those of the last start: %s; %s now holds the new ones",
            changed,
            directory.config,
        )
    directory.path.mkdir(parents=True, exist_ok=True)
    replace_file(directory.config, text.encode())
