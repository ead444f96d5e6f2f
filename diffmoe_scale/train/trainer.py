"""Training, read top to bottom: set-up, resume, the step, and what happens between steps."""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
import torch.distributed as dist

from diffmoe_scale.checkpoint.manifest import Manifest
from diffmoe_scale.checkpoint.store import CheckpointStore
from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.identity import model_settings
from diffmoe_scale.config.load import changed_settings, dump_config
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.features.check import check_features
from diffmoe_scale.data.order.plan import BatchPlan, Position
from diffmoe_scale.data.reading.batch import Batch
from diffmoe_scale.data.reading.build import build_reader
from diffmoe_scale.data.reading.reader import Reader, iterate_captions
from diffmoe_scale.encoders.text.encoder import TextEncoder
from diffmoe_scale.encoders.text.tokenizer import train_tokenizer
from diffmoe_scale.files import replace_file
from diffmoe_scale.model.networks import Networks, build_networks
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.moe.thresholds import update_thresholds
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.train.engine import Engine, accumulation_steps
from diffmoe_scale.train.guard import Guard
from diffmoe_scale.train.loss import condition_of, denoising_loss, latents_of
from diffmoe_scale.train.optim import learning_rate
from diffmoe_scale.train.reporter import Reporter
from diffmoe_scale.train.stop import Stopped, StopSignals
from diffmoe_scale.train.validation import Validation

logger = logging.getLogger(__name__)

TOKENIZER_CAPTIONS = 100_000
JUDGED_CAPTIONS = 1000
PREPARATION_TIMEOUT = timedelta(hours=2)


def train(config: Config, context: ParallelContext, directory: RunDirectory) -> None:
    """Train to `run.steps` from the newest complete checkpoint of the directory, or from the start.
    Collective over the world.

    Raises: Stopped when a signal asked for the end; RuntimeError also when the last checkpoint was not
    written.
    """
    run = set_up(config, context, directory)
    if run.step >= config.run.steps:
        logger.info(
            "%s has its %d steps (run.steps) already; nothing to train", directory.path, config.run.steps
        )
    with run.stop, run.store:
        try:
            while run.step < config.run.steps:
                train_on(run)
                if run.guard.must_roll_back:
                    roll_back(run)
            if (
                not run.store.finish()
            ):  # checkpoint.on_write_error lets training go on; here nothing is left that could
                raise RunError(
                    f"the last checkpoint was not written (the log says why), so {directory.path} lacks the last steps"
                )
        finally:
            if summary := run.guard.summary():
                logger.warning("in this run %s", summary)


@dataclass(kw_only=True)
class Training:
    """What a run consists of, and where it stands."""

    config: Config
    context: ParallelContext
    directory: RunDirectory
    networks: Networks
    engine: Engine
    store: CheckpointStore
    validation: Validation
    reader: Reader
    plan: BatchPlan
    batches: Iterator[Batch]
    guard: Guard
    stop: StopSignals
    step: int
    position: Position
    """In the data, after the last whole step."""


def set_up(config: Config, context: ParallelContext, directory: RunDirectory) -> Training:
    """All that a run consists of, at its newest checkpoint or at the start. Collective over the world."""
    torch.set_float32_matmul_precision(config.run.matmul_precision)
    choose_kernels(is_deterministic=config.run.deterministic)
    accumulation_steps(config, context)  # refuses a batch that does not split, before the slow work
    reader = build_reader(
        config.data, config.data.train, model=config.model, seed=config.run.seed, buckets=config.buckets
    )
    plan = reader.plan(global_batch=config.run.global_batch, micro_batch=config.run.micro_batch)
    if context.is_main:
        prepare_tokenizer(config, directory, reader)
    # The tokenizer reads captions of all shards, perhaps over a network: longer than a collective may take.
    dist.monitored_barrier(group=context.control_group, timeout=PREPARATION_TIMEOUT)
    networks = build_networks(
        config,
        tokenizer_path=directory.tokenizer,
        groups=context.megatron_groups,
        device=context.device,
        control_group=context.control_group,
    )
    engine = Engine(networks.denoiser, config, context)
    if context.is_main and networks.text_encoder is not None:
        warn_of_cut_captions(networks.text_encoder, reader)
    store = CheckpointStore(directory.checkpoints, config.checkpoint, group=context.checkpoint_group)
    start = resume(store, engine, config, directory, frozen=networks.frozen)
    position = plan.position(step=start.step, samples=start.samples, by_bucket=start.samples_by_bucket)
    if context.is_main:
        record_config(config, directory)
    guard = Guard(config.defence, context)
    guard.restore(start.guard)
    validation = Validation(config, context, directory, networks, reader)
    refuse_other_features([reader, validation.reader], networks, config)
    batches = reader.batches(plan, position, dp_rank=context.dp_group.rank(), dp_size=context.dp_group.size())
    return Training(
        config=config,
        context=context,
        directory=directory,
        networks=networks,
        engine=engine,
        store=store,
        validation=validation,
        reader=reader,
        plan=plan,
        batches=batches,
        guard=guard,
        stop=StopSignals(),
        step=start.step,
        position=position,
    )


def train_on(run: Training) -> None:
    """Steps and what happens between them, to the end of the run or until it must be rolled back.

    Raises: Stopped after a step whose end a signal asked for.
    """
    config, is_save_due = run.config, False
    with Reporter(
        config, run.context, run.directory, moe_layers=run.networks.denoiser.moe_layers(), start_step=run.step
    ) as reporter:
        reporter.add(run.reader.index_problems())
        while run.step < config.run.steps:
            run.step += 1
            train_step(run, reporter)
            run.position = run.plan.advance(run.position)
            reporter.add(run.reader.dataset_counts(run.position))
            if _is_due(run.step, config.telemetry.validate_every, config):
                with run.engine.averaged_weights():
                    reporter.add(run.validation.loss())
            if _is_due(run.step, config.telemetry.sample_every, config):
                with run.engine.averaged_weights():
                    reporter.add_image(run.step, "samples", run.validation.draw(run.step))
            reporter.end_step(run.step, run.position.samples)
            if run.guard.must_roll_back:
                return
            is_save_due |= _is_due(run.step, config.checkpoint.every, config) or run.guard.is_stop_requested
            # Never after a bad step: the newest checkpoint is the one to go back to.
            if is_save_due and (run.guard.bad_in_a_row == 0 or run.step == config.run.steps):
                save(run)
                is_save_due = False
            if run.guard.is_stop_requested and run.step < config.run.steps:
                kept = (
                    "was bad and is not saved"
                    if is_save_due
                    else "is saved"
                    if run.store.finish()
                    else "could not be saved"
                )
                raise Stopped(
                    f"a signal asked for it; step {run.step} {kept}", is_interrupt=run.guard.is_interrupt
                )


def choose_kernels(*, is_deterministic: bool) -> None:
    """Deterministic kernels where torch has them, or the fastest."""
    # cuBLAS reads it when CUDA starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(is_deterministic, warn_only=True)
    # torch would fill every new tensor, to make reading uninitialised memory repeatable; nothing here reads
    # any.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set through a property that stubs lack


def train_step(run: Training, reporter: Reporter) -> None:
    """One optimizer step over the global batch, then thresholds and weight average, then the judgement on it."""
    engine, context, config = run.engine, run.context, run.config
    reporter.begin_step()
    kth_probabilities = []
    for _ in range(engine.accumulation):
        waiting_since = time.monotonic()
        batch = next(run.batches)
        reporter.add_batch(batch, waited_s=time.monotonic() - waiting_since)
        latents_BCHW = latents_of(batch, run.networks.autoencoder, context.device)
        selection = Selection(rule="train", step=run.step)
        loss = denoising_loss(
            engine,
            run.networks.objective,
            batch,
            latents_BCHW,
            condition_of(batch, run.networks),
            seed=config.run.seed,
            selection=selection,
        )
        engine.backward(loss.total)
        reporter.add_loss(loss)
        run.guard.add(batch, loss)
        kth_probabilities += (
            [torch.stack([routing.kth_probability_E for routing in loss.routings])] if loss.routings else []
        )
    result = engine.step(learning_rate(run.step, config))
    if kth_probabilities and not result.is_skipped:
        update_thresholds(
            run.networks.denoiser.moe_layers(), torch.stack(kth_probabilities).mean(0), context.dp_group
        )
    reporter.add_verdict(run.guard.judge(run.step, is_skipped=result.is_skipped, stop=run.stop))
    reporter.add_step(result)


def roll_back(run: Training) -> None:
    """Back to the newest checkpoint; the data goes on where it is. Collective over the world.

    The checkpoint is written anew with that place in the data: a run that is killed later on leaves out the
    same samples.

    Raises: RuntimeError if `defence.max_rollbacks` are used up or there is no checkpoint.
    """
    told = f"the last {run.guard.bad_in_a_row} steps to step {run.step} were bad (defence.bad_steps)"
    advice = "lower optimizer.learning_rate, or look at the samples that the log names"
    if run.guard.counts["rollbacks"] >= run.config.defence.max_rollbacks:
        raise RunError(
            f"{told} and {run.config.defence.max_rollbacks} rollbacks (defence.max_rollbacks) are used up; {advice}"
        )
    start = resume(run.store, run.engine, run.config, run.directory, frozen=run.networks.frozen)
    if start.step == 0:
        raise RunError(f"{told} and there is no checkpoint to go back to; {advice}")
    run.step, run.position = start.step, replace(run.position, step=start.step)
    if len(run.plan.stages) > 1:
        # The sizes of images go by the step, which went back.
        run.batches = run.reader.batches(
            run.plan, run.position, dp_rank=run.context.dp_group.rank(), dp_size=run.context.dp_group.size()
        )
    run.guard.rolled_back(start.guard)
    samples = run.position.samples
    logger.warning(
        "%s; back to step %d, on behind sample %d: %d samples are left out",
        told,
        run.step,
        samples,
        samples - start.samples,
    )
    save(run)


def save(run: Training) -> None:
    """A checkpoint of where the run stands. Collective over the world."""
    context, config = run.context, run.config
    manifest = Manifest(
        step=run.step,
        samples=run.position.samples,
        samples_by_bucket=run.plan.by_bucket(run.position),
        optimizer_steps=run.engine.step_count,
        settings=model_settings(config, tokenizer=run.directory.tokenizer, frozen=run.networks.frozen),
        layout={
            "world_size": context.world_size,
            "expert_parallel": context.expert_parallel,
            "zero_stage": config.parallel.zero_stage,
        },
        guard=run.guard.state(),
    )
    run.store.save(run.engine.state(), manifest)


def _is_due(step: int, every: int, config: Config) -> bool:
    return every > 0 and (step % every == 0 or step == config.run.steps)


def resume(
    store: CheckpointStore,
    engine: Engine,
    config: Config,
    directory: RunDirectory,
    *,
    frozen: Mapping[str, str],
) -> Manifest:
    """Fill the engine from the newest checkpoint and say where it stood; step 0 without one. Collective over
    the world."""
    found = store.newest()
    if found is None:
        return Manifest(step=0, samples=0, optimizer_steps=0)
    checkpoint, _ = found
    loaded = store.load(
        checkpoint,
        engine.state(),
        settings=model_settings(config, tokenizer=directory.tokenizer, frozen=frozen),
    )
    engine.restored(step_count=loaded.optimizer_steps)
    logger.info("continues from %s (step %d, %d samples)", checkpoint, loaded.step, loaded.samples)
    return loaded


def prepare_tokenizer(config: Config, directory: RunDirectory, reader: Reader) -> None:
    """Train the tokenizer of the run's captions, unless an earlier start did. For the main rank, before the
    others read it."""
    if (
        config.model.conditioning == "text"
        and config.text.kind == "sentencepiece"
        and not directory.tokenizer.is_file()
    ):
        directory.path.mkdir(parents=True, exist_ok=True)
        train_tokenizer(
            iterate_captions(reader, TOKENIZER_CAPTIONS),
            vocabulary=config.text.vocabulary,
            path=directory.tokenizer,
        )


def warn_of_cut_captions(encoder: TextEncoder, reader: Reader) -> None:
    """Say so if more than one caption in a hundred is longer than `text.max_tokens`, judged by a thousand of
    them."""
    encoder.tokenize(list(iterate_captions(reader, JUDGED_CAPTIONS)))
    share = encoder.tokenizer.num_cut / encoder.tokenizer.num_captions
    if share > 0.01:
        logger.warning(
            "%.0f %% of the captions are longer than text.max_tokens (%d) and cut; raise it",
            100 * share,
            encoder.tokenizer.max_tokens,
        )


def refuse_other_features(readers: Sequence[Reader | None], networks: Networks, config: Config) -> None:
    """Raise ValueError if shards hold features that this run's autoencoder and text encoder would not give."""
    for features in [reader.source.features for reader in readers if reader is not None]:
        if features is not None:
            check_features(features.source, **networks.frozen, is_flipped=config.data.horizontal_flip)


def record_config(config: Config, directory: RunDirectory) -> None:
    """Write RUN/config.yaml once it is known to fit the checkpoints there."""
    text = dump_config(config)
    if directory.config.is_file() and directory.config.read_text() != text:
        changed = "; ".join(changed_settings(directory.config, config)) or "none in meaning"
        logger.info(
            "settings that differ from those of the last start: %s; %s now holds the new ones",
            changed,
            directory.config,
        )
    directory.path.mkdir(parents=True, exist_ok=True)
    replace_file(directory.config, text.encode())
