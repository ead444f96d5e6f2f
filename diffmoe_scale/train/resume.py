"""A run goes on from its newest checkpoint."""

import logging
from collections.abc import Mapping
from pathlib import Path

from diffmoe_scale.checkpoint.manifest import SECOND_AVERAGE, Manifest
from diffmoe_scale.checkpoint.store import CheckpointStore
from diffmoe_scale.config.identity import model_settings
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.schema import Config
from diffmoe_scale.train.alignment import Alignment
from diffmoe_scale.train.engine import Engine
from diffmoe_scale.train.muon import MOMENTUM
from diffmoe_scale.words import counted

logger = logging.getLogger(__name__)


def resume(
    store: CheckpointStore,
    engine: Engine,
    config: Config,
    directory: RunDirectory,
    *,
    frozen: Mapping[str, str],
    alignment: Alignment | None = None,
) -> Manifest:
    """Fill the engine from the newest checkpoint and say where it stood; step 0 without one. Collective over
    the world."""
    found = store.newest()
    if found is None:
        return Manifest(step=0, samples=0, optimizer_steps=0)
    checkpoint, manifest = found
    refuse_other_optimizer(checkpoint, manifest, config)
    state = engine.state()
    if alignment is not None:
        refuse_other_teacher(checkpoint, manifest, alignment, config)
        if manifest.teacher:
            state |= alignment.state()
        else:
            logger.info("%s was not aligned: the projector of alignment.encoder is new", checkpoint)
    has_second = any(name.startswith(SECOND_AVERAGE) for name in manifest.shapes)
    is_new = "ema2" in engine.averages and not has_second
    loaded = store.load(
        checkpoint,
        {name: piece for name, piece in state.items() if not (is_new and name.startswith(SECOND_AVERAGE))},
        settings=model_settings(config, tokenizer=directory.tokenizer, frozen=frozen),
    )
    if is_new:
        engine.averages["ema2"].copy(engine.averages["ema"])
        logger.info("%s has no second average (optimizer.ema2_decay): it begins with the first", checkpoint)
    engine.restored(step_count=loaded.optimizer_steps)
    logger.info("continues from %s (step %d, %s)", checkpoint, loaded.step, counted(loaded.samples, "sample"))
    return loaded


def refuse_other_teacher(checkpoint: Path, manifest: Manifest, alignment: Alignment, config: Config) -> None:
    """Raise ValueError if the checkpoint is aligned with another encoder and alignment goes on."""
    goes_on = config.alignment.is_on(manifest.step + 1)
    if goes_on and manifest.teacher and manifest.teacher != alignment.fingerprint:
        raise ValueError(
            f"alignment.encoder is {config.alignment.encoder!r} of fingerprint {alignment.fingerprint}, but "
            f"checkpoint {checkpoint} is aligned with an encoder of fingerprint {manifest.teacher}; give "
            "that one, or begin a new run with its weights (run.initialize_from)"
        )


def refuse_other_optimizer(checkpoint: Path, manifest: Manifest, config: Config) -> None:
    """Raise ValueError if the checkpoint holds the state of an optimizer of another kind."""
    has_momentum = any(name.startswith(f"{MOMENTUM}/") for name in manifest.shapes)
    kind = "muon" if has_momentum else "adamw"
    if kind != config.optimizer.kind:
        raise ValueError(
            f"optimizer.kind is {config.optimizer.kind!r} but checkpoint {checkpoint} holds the state of "
            f"{kind!r}; set optimizer.kind={kind}, or begin a new run with its weights "
            "(run.initialize_from)"
        )
