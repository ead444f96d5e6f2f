"""A run, read top to bottom: steps, what happens between them, going back, and the end."""

import logging
from dataclasses import replace

from diffmoe_scale.checkpoint.manifest import Manifest
from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.identity import model_settings
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.schema import Config
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.parallel.waiting import wait_for_ranks
from diffmoe_scale.train.resume import resume
from diffmoe_scale.train.setup import set_up
from diffmoe_scale.train.stop import Stopped
from diffmoe_scale.train.trainer import Training, train_step
from diffmoe_scale.train.watch import Watch
from diffmoe_scale.words import counted

logger = logging.getLogger(__name__)


def train(config: Config, context: ParallelContext, directory: RunDirectory) -> None:
    """Train to `run.steps` from the newest complete checkpoint of the directory, or from the start.
    Collective over the world.

    Raises: Stopped when a signal asked for the end; RuntimeError also when the last checkpoint was not
    written.
    """
    run = set_up(config, context, directory)
    if run.step >= config.run.steps:
        logger.info(
            "%s has its %s (run.steps) already; nothing to train",
            directory.path,
            counted(config.run.steps, "step"),
        )
    with run.stop, run.store:
        try:
            while run.step < config.run.steps:
                train_on(run)
                if run.guard.must_roll_back:
                    roll_back(run)
            if not run.store.finish():
                # checkpoint.on_write_error lets training go on; here nothing is left that could.
                raise RunError(
                    f"the last checkpoint was not written (the log says why), so {directory.path} lacks "
                    "the last steps"
                )
        finally:
            if summary := run.guard.summary():
                logger.warning("in this run %s", summary)


def train_on(run: Training) -> None:
    """Steps and what happens between them, to the end of the run or until it must be rolled back.

    Raises: Stopped after a step whose end a signal asked for.
    """
    config, telemetry, is_save_due = run.config, run.config.telemetry, False
    with (
        Watch(telemetry, run.context, run.directory, run.stop) as watch,
        run.reporter() as reporter,
    ):
        # The main rank started trackers, perhaps over a network.
        wait_for_ranks(run.context.waiting_group)
        while run.step < config.run.steps:
            run.step += 1
            watch.begin_step(run.step)
            train_step(run, reporter)
            run.position = run.plan.advance(run.position)
            reporter.add(run.reader.dataset_counts(run.position))
            reporter.add(run.reader.index_problems())
            if config.run.is_due(run.step, telemetry.validate_every):
                with reporter.phase("validation"):
                    reporter.add(validate(run))
            if config.run.is_due(run.step, telemetry.sample_every):
                with reporter.phase("samples"), run.engine.averaged_weights():
                    reporter.add_image(run.step, "samples", run.validation.draw(run.step))
            if run.sample_metrics and config.run.is_due(run.step, telemetry.metrics_every):
                with reporter.phase("samples"), run.engine.averaged_weights():
                    reporter.add(run.sample_metrics.measure())
            reporter.end_step(run.step, run.position.samples)
            if run.guard.must_roll_back:
                return
            watch.end_step(run.step)
            is_waiting = agree_on_end(run)
            is_save_due |= config.run.is_due(run.step, config.checkpoint.every) or run.stop.is_requested
            if is_save_due and may_save(run, is_waiting=is_waiting):
                run.line = reporter.state(run.step)
                with reporter.phase("checkpoint"):
                    save(run)
                is_save_due = False
            if run.stop.is_requested and run.step < config.run.steps:
                stop(run, is_saved=not is_save_due)


def agree_on_end(run: Training) -> bool:
    """Learn whether a signal asked for the end, and whether a save that failed waits for its second try.
    Collective. Raises: RunError if one has failed for good and training is to stop then."""
    is_failed, is_waiting = run.stop.agree(
        run.context.control_group, run.store.has_failed, run.store.is_waiting
    )
    if is_failed:
        run.store.finish()
    return is_waiting


def may_save(run: Training, *, is_waiting: bool) -> bool:
    """Not after a bad step: the newest checkpoint is the one to go back to. Not while a save waits for its
    second try, which would be waited for. The end of the run saves all the same."""
    if run.step == run.config.run.steps:
        return True
    return run.guard.bad_in_a_row == 0 and (run.stop.is_requested or not is_waiting)


def validate(run: Training) -> dict[str, float]:
    """The losses of held-out samples by the averaged weights, and `loss/validation_ema2` by the second
    average where there is one. Collective over the world."""
    with run.engine.averaged_weights():
        found = run.validation.loss()
    if "ema2" in run.engine.averages:
        with run.engine.averaged_weights("ema2"):
            second = run.validation.loss(has_fixed_times=False)
        found |= {name.replace("validation", "validation_ema2"): value for name, value in second.items()}
    return found


def stop(run: Training, *, is_saved: bool) -> None:
    """End the run between two steps, once its checkpoint is written. Collective. Raises: Stopped."""
    if not is_saved:
        kept = "was bad and is not saved"
    else:
        kept = "is saved" if run.store.finish() else "could not be saved"
    reason = f"{run.stop.source} asked for it; step {run.step} {kept}"
    raise Stopped(reason, is_interrupt=run.stop.is_interrupt)


def roll_back(run: Training) -> None:
    """Back to the newest checkpoint; the data goes on where it is. Collective over the world.

    The checkpoint is written anew with that place in the data: a run that is killed later on leaves out the
    same samples.

    Raises: RuntimeError if `defence.max_rollbacks` are used up or there is no checkpoint.
    """
    # The main rank may still be closing trackers.
    wait_for_ranks(run.context.waiting_group)
    bad = run.guard.bad_in_a_row
    cause = f"step {run.step} was" if bad == 1 else f"the last {bad} steps to step {run.step} were"
    cause += " bad (defence.bad_steps)"
    advice = "lower optimizer.learning_rate, or look at the samples that the log names"
    max_rollbacks = run.config.defence.max_rollbacks
    if run.guard.counts["rollbacks"] >= max_rollbacks:
        allowed = counted(max_rollbacks, "rollback")
        raise RunError(f"{cause} and no more than {allowed} may be (defence.max_rollbacks); {advice}")
    start = resume(
        run.store,
        run.engine,
        run.config,
        run.directory,
        frozen=run.networks.frozen,
        alignment=run.alignment,
    )
    if start.step == 0:
        raise RunError(f"{cause} and there is no checkpoint to go back to; {advice}")
    run.step, run.position = start.step, replace(run.position, step=start.step)
    run.line = start.line
    if len(run.plan.stages) > 1:
        # The sizes of images go by the step, which went back.
        rank, ranks = run.context.data_rank, run.context.data_ranks
        run.batches = run.reader.batches(run.plan, run.position, dp_rank=rank, dp_size=ranks)
    run.guard.rolled_back(start.guard)
    samples = run.position.samples
    logger.warning(
        "%s; back to step %d, on behind sample %d: left out %s",
        cause,
        run.step,
        samples,
        counted(samples - start.samples, "sample"),
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
        teacher="" if run.alignment is None else run.alignment.fingerprint,
        line=dict(run.line),
    )
    aligned = {} if run.alignment is None else run.alignment.state()
    run.store.save(run.engine.state() | aligned, manifest)
