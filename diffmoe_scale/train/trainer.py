"""Training, read top to bottom: set-up, resume, the step, and what happens between steps."""

import logging
import os
import time
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

from diffmoe_scale.checkpoint.manifest import Manifest
from diffmoe_scale.checkpoint.store import CheckpointStore
from diffmoe_scale.config.load import dump_config, model_settings
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.batch import Batch
from diffmoe_scale.data.shards import Reader, build_reader, iterate_captions
from diffmoe_scale.encoders.text import TextEncoder, train_tokenizer
from diffmoe_scale.model.pipeline import Pipeline, build_pipeline
from diffmoe_scale.moe.capacity import update_thresholds
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.train.engine import Engine, accumulation_steps
from diffmoe_scale.train.loss import denoising_loss
from diffmoe_scale.train.optim import learning_rate
from diffmoe_scale.train.reporter import Reporter
from diffmoe_scale.train.validation import Validation

logger = logging.getLogger(__name__)

TOKENIZER_CAPTIONS = 100_000
JUDGED_CAPTIONS = 1000
PREPARATION_TIMEOUT = timedelta(hours=2)
MAX_SKIPPED_IN_A_ROW = 20


def train(config: Config, context: ParallelContext, directory: RunDirectory) -> None:
    """Train to `run.steps` from the newest complete checkpoint of the directory, or from the start. Collective over the world."""
    torch.set_float32_matmul_precision(config.run.matmul_precision)
    choose_kernels(is_deterministic=config.run.deterministic)
    accumulation_steps(config, context)  # refuses a batch that does not split, before the slow work
    reader = build_reader(config.data, config.data.train, model=config.model, seed=config.run.seed)
    if context.is_main:
        prepare_tokenizer(config, directory, reader)
    # The tokenizer reads captions of all shards, perhaps over a network: longer than a collective may take.
    dist.monitored_barrier(group=context.control_group, timeout=PREPARATION_TIMEOUT)
    pipeline = build_pipeline(config, tokenizer_path=directory.tokenizer, groups=context.megatron_groups, device=context.device)
    engine = Engine(pipeline.denoiser, config, context)
    if context.is_main and pipeline.denoiser.caption_encoder is not None:
        warn_of_cut_captions(pipeline.denoiser.caption_encoder, reader)
    store = CheckpointStore(directory.checkpoints, config.checkpoint, group=context.checkpoint_group)
    start = resume(store, engine, config, directory)
    if context.is_main:
        record_config(config, directory)
    validation = Validation(config, context, directory, pipeline, reader)
    batches = reader.batches(
        start_sample=start.samples,
        dp_rank=context.dp_group.rank(),
        dp_size=context.dp_group.size(),
        global_batch=config.run.global_batch,
        micro_batch=config.run.micro_batch,
    )
    samples = start.samples
    with Reporter(config, context, directory, moe_layers=pipeline.denoiser.moe_layers(), start_step=start.step) as reporter, store:
        for step in range(start.step + 1, config.run.steps + 1):
            train_step(step, batches, pipeline, engine, config, context, reporter)
            samples += config.run.global_batch
            if _is_due(step, config.telemetry.validate_every, config):
                with engine.averaged_weights():
                    reporter.add(validation.loss())
            if _is_due(step, config.telemetry.sample_every, config):
                with engine.averaged_weights():
                    reporter.add_image(step, "samples", validation.draw(step))
            reporter.end_step(step, samples)
            if _is_due(step, config.checkpoint.every, config):
                store.save(engine.state(), manifest(step, samples, engine, config, context, directory))
        if start.step >= config.run.steps:
            logger.info("%s has its %d steps (run.steps) already; nothing to train", directory.path, config.run.steps)


def choose_kernels(*, is_deterministic: bool) -> None:
    """Deterministic kernels where torch has them, or the fastest."""
    # cuBLAS reads it when CUDA starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(is_deterministic, warn_only=True)
    # torch would fill every new tensor, to make reading uninitialised memory repeatable; nothing here reads any.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set through a property that stubs lack


def train_step(
    step: int, batches: Iterator[Batch], pipeline: Pipeline, engine: Engine, config: Config, context: ParallelContext, reporter: Reporter
) -> None:
    """One optimizer step over the global batch, then thresholds and weight average."""
    reporter.begin_step()
    kth_probabilities = []
    for _ in range(engine.accumulation):
        waiting_since = time.monotonic()
        batch = next(batches)
        reporter.add_batch(batch, waited_s=time.monotonic() - waiting_since)
        latents_BCHW = pipeline.autoencoder.encode(batch.images_BCHW.to(context.device))
        selection = Selection(rule="train", step=step)
        loss = denoising_loss(engine, pipeline.objective, batch, latents_BCHW, seed=config.run.seed, selection=selection)
        engine.backward(loss.total)
        reporter.add_loss(loss)
        kth_probabilities += [torch.stack([routing.kth_probability_E for routing in loss.routings])] if loss.routings else []
    result = engine.step(learning_rate(step, config))
    reporter.add_step(result)
    if result.is_skipped:
        logger.warning("step %d is skipped: a gradient is not finite; samples %s to %s", step, batch.keys[0], batch.keys[-1])
    if engine.skipped_in_a_row > MAX_SKIPPED_IN_A_ROW:
        raise RuntimeError(
            f"{engine.skipped_in_a_row} steps in a row had gradients that are not finite; "
            "lower optimizer.learning_rate, or look for the first warning in the log"
        )
    if kth_probabilities and not result.is_skipped:
        update_thresholds(pipeline.denoiser.moe_layers(), torch.stack(kth_probabilities).mean(0), context.dp_group)


def _is_due(step: int, every: int, config: Config) -> bool:
    return every > 0 and (step % every == 0 or step == config.run.steps)


def resume(store: CheckpointStore, engine: Engine, config: Config, directory: RunDirectory) -> Manifest:
    """Fill the engine from the newest checkpoint and say where it stood; step 0 without one. Collective over the world."""
    found = store.newest()
    if found is None:
        return Manifest(step=0, samples=0, optimizer_steps=0)
    checkpoint, _ = found
    loaded = store.load(checkpoint, engine.state(), settings=model_settings(config, tokenizer=directory.tokenizer))
    engine.restored(step_count=loaded.optimizer_steps)
    logger.info("continues from %s (step %d, %d samples)", checkpoint, loaded.step, loaded.samples)
    return loaded


def manifest(step: int, samples: int, engine: Engine, config: Config, context: ParallelContext, directory: RunDirectory) -> Manifest:
    settings = model_settings(config, tokenizer=directory.tokenizer)
    layout = {"world_size": context.world_size, "expert_parallel": context.expert_parallel, "zero_stage": config.parallel.zero_stage}
    return Manifest(step=step, samples=samples, optimizer_steps=engine.step_count, settings=settings, layout=layout)


def prepare_tokenizer(config: Config, directory: RunDirectory, reader: Reader) -> None:
    """Train the tokenizer of the run's captions, unless an earlier start did. For the main rank, before the others read it."""
    if config.model.conditioning == "text" and config.text.kind == "sentencepiece" and not directory.tokenizer.is_file():
        directory.path.mkdir(parents=True, exist_ok=True)
        train_tokenizer(iterate_captions(reader, TOKENIZER_CAPTIONS), vocabulary=config.text.vocabulary, path=directory.tokenizer)


def warn_of_cut_captions(encoder: TextEncoder, reader: Reader) -> None:
    """Say so if more than one caption in a hundred is longer than `text.max_tokens`, judged by a thousand of them."""
    encoder.tokenize(list(iterate_captions(reader, JUDGED_CAPTIONS)))
    share = encoder.tokenizer.num_cut / encoder.tokenizer.num_captions
    if share > 0.01:
        logger.warning("%.0f %% of the captions are longer than text.max_tokens (%d) and cut; raise it", 100 * share, encoder.tokenizer.max_tokens)


def record_config(config: Config, directory: RunDirectory) -> None:
    """Write RUN/config.yaml once it is known to fit the checkpoints there."""
    text = dump_config(config)
    if directory.config.is_file() and directory.config.read_text() != text:
        logger.info("the settings differ from those that %s was last started with; config.yaml now holds the new ones", directory.path)
    directory.path.mkdir(parents=True, exist_ok=True)
    temporary = directory.config.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, directory.config)
