"""Whether the samples of a run have what it is conditioned on: seen at the start, not after an epoch."""

from collections import Counter
from collections.abc import Iterable, Sequence

from diffmoe_scale.config.data import DataConfig
from diffmoe_scale.data.features.locate import load_feature_set, set_file
from diffmoe_scale.data.features.source import FEATURE_SUFFIX
from diffmoe_scale.data.reading.source import SampleSource
from diffmoe_scale.words import counted

CHECKED_SAMPLES = 2000
"""Samples that are looked at where something is missing; mostly the first ones have all."""


def check_conditions(source: SampleSource, places: Sequence[tuple[int, int]]) -> None:
    """Look at samples (shard and row) until each condition was seen.

    Raises: ValueError if none has a caption (or label), or a source that data.caption_weights names.
    """
    is_class = source.model.conditioning == "class"
    missing = set() if is_class or source.has_text_features else _named_sources(source.config)
    found: Counter[str] = Counter()
    has_condition = False
    for shard, row in places:
        members = source.catalog.index(shard).members(row)
        found.update(members.keys())
        if FEATURE_SUFFIX in members and source.features is None:
            load_feature_set(set_file(source.catalog.paths[shard], source.catalog.remote))
        if is_class:
            has_condition |= "cls" in members
        elif source.has_text_features:
            has_condition = True
        else:
            texts = source.files.texts(shard, members, list(source.config.caption_weights))
            has_condition |= bool(texts)
            missing -= texts.keys()
        if has_condition and not missing:
            return
    looked_at, shards = counted(len(places), "sample"), counted(len(source.catalog.paths), "shard")
    looked = f"none of {looked_at} that were looked at in {shards} has"
    if not has_condition:
        expected = (
            "a .cls (model.conditioning is 'class')"
            if is_class
            else f"a caption in {_describe(source.config.caption_weights)} (data.caption_weights)"
        )
        raise ValueError(f"{looked} {expected}; members found: {dict(found)}")
    raise ValueError(
        f"{looked} a caption in {_describe(sorted(missing))}, which data.caption_weights names "
        f"({dict(source.config.caption_weights)}); leave it out, or see tools/inspect_data.py for what "
        "there is"
    )


def _named_sources(config: DataConfig) -> set[str]:
    """Sources that the user asked for: all but the fallbacks of the default."""
    weights, usual = config.caption_weights, DataConfig().caption_weights
    if dict(weights) == dict(usual):
        return set()
    return {name for name, weight in weights.items() if weight > 0 or name not in usual}


def _describe(names: Iterable[str]) -> str:
    return " or ".join("its .txt" if name == "txt" else f"the field {name!r} of its .json" for name in names)
