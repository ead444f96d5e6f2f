"""Whether a model was trained on captions of the scenes that the suites ask for."""

import logging
from collections.abc import Iterator
from glob import escape
from pathlib import Path

from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.origin import split_foreign
from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.reading.build import build_reader
from diffmoe_scale.data.reading.reader import iterate_captions
from diffmoe_scale.data.shards.patterns import expand_patterns
from diffmoe_scale.data.shards.remote import is_url
from diffmoe_scale.encoders.text.tokenizer import load_tokenizer
from diffmoe_scale.sampling.calibration import shard_names
from diffmoe_scale.scenes.scenes import is_scene_caption, scene_words

logger = logging.getLogger(__name__)

MAX_CAPTIONS = 500
ADVICE = "their scores would say nothing about it; give --anyway to have them all the same"


def check_captions(config: Config, tokenizer: Path) -> None:
    """Looks at captions of the run's first local shard; where none is on this machine, at the words of its
    tokenizer.

    Raises: ValueError if no caption is about coloured shapes, or the tokenizer knows no word for them.
    """
    captions = list(_captions(config))
    if captions:
        if not any(is_scene_caption(caption) for caption in captions):
            raise ValueError(
                f"this model's captions are not about coloured shapes (none of {len(captions)} is, such as "
                f"{captions[0]!r:.100}), which the suites ask for: {ADVICE}"
            )
        return
    unknown = _unknown_words(config, tokenizer)
    if unknown is None:
        logger.warning(
            "what this model's captions are about cannot be found out here; the scores say something only of "
            "one that was trained on pictures of tools/make_scenes.py"
        )
    elif 2 * len(unknown) > len(scene_words()):
        raise ValueError(
            f"this model's tokenizer has no word for {', '.join(unknown[:5])} and others that the suites ask "
            f"for, so its captions were not about coloured shapes: {ADVICE}"
        )


def _captions(config: Config) -> Iterator[str]:
    """Nothing is downloaded, and no command of a `pipe:` is run, for this question."""
    for patterns in (config.data.validation, config.data.train):
        names = [split_foreign(name)[1] for name in shard_names(patterns)]
        local = [name for name in names if not is_url(name)]
        if not local:
            continue
        try:
            shards = expand_patterns(local)
            # Whole: a relative name may look like a command.
            first = escape(str(shards[0].resolve()))
            reader = build_reader(config.data, [first], model=config.model, seed=0, buckets=config.buckets)
            found = list(iterate_captions(reader, MAX_CAPTIONS))
        except (ValueError, RunError, OSError) as error:
            logger.info("captions of %s cannot be read here: %s", ", ".join(local), error)
            continue
        if found:
            yield from found
            return


def _unknown_words(config: Config, tokenizer: Path) -> list[str] | None:
    """Shapes and colours that are no piece of the run's own tokenizer; None without one."""
    if config.text.trained is None or not tokenizer.is_file():
        return None
    processor = load_tokenizer(tokenizer, vocabulary=config.text.vocabulary)
    return [word for word in scene_words() if len(processor.encode(word)) > 1]
