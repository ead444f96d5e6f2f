"""Where the file that says what made a set's features lies, and what it says."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any  # JSON values

import safetensors
from torch import Tensor

from diffmoe_scale.data.features.source import (
    PRECISIONS,
    SET_FILE,
    TEACHER,
    CaptionFeatures,
    FeatureSet,
    FeatureSource,
    differences,
    stream_name,
)
from diffmoe_scale.data.shards.remote import RemoteShards, is_url
from diffmoe_scale.json_text import parse_json

logger = logging.getLogger(__name__)

LEAST = {"channels": 1, "factor": 1, "image_size": 1, "step": 0, "teacher_width": 0, "teacher_patch": 0}
"""Of the whole numbers in a FeatureSource."""
TEXTS = ("autoencoder", "text", "teacher")


@dataclass(frozen=True)
class SetFile:
    """The file that says what made the features in the shards of a folder."""

    name: str
    """For messages: a path, or the URL that it has; of `pipe:` shards their own."""
    place: Path | None
    """Of a URL's, where it is kept; None for `pipe:` shards."""


def set_file(shard: Path, remote: RemoteShards | None = None) -> SetFile:
    """The one of a shard, whether it exists or not."""
    if remote is None or shard not in remote.urls:
        place = shard.with_name(SET_FILE)
        return SetFile(str(place), place)
    url = remote.beside(shard, SET_FILE)
    return SetFile(url, remote.folder_of(url) / SET_FILE) if url else SetFile(remote.urls[shard], None)


def load_feature_set(file: SetFile) -> FeatureSet:
    """The set of a folder's shards. Raises: ValueError where the file is missing or unreadable."""
    if file.place is None:
        raise ValueError(
            f"{file.name} gives features, but a command names no folder to fetch {SET_FILE} from; "
            "name the shards by URLs of http, s3 or gs, or copy them and that file to a local folder"
        )
    try:
        with safetensors.safe_open(file.place, "pt") as archive:
            stated = dict(parse_json(archive.metadata()["source"]))
            names = archive.keys()  # a method: an archive is no dictionary
            tensors = {name: archive.get_tensor(name) for name in names}
        empty = _split_streams(tensors)
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        kept = "" if file.name == str(file.place) else f", kept as {file.place} until that is removed,"
        raise ValueError(
            f"{file.name}{kept} is missing or damaged ({error}); it belongs beside the shards that "
            "tools/cache_features.py wrote"
        ) from error
    expected = [field.name for field in fields(FeatureSource)]
    if not stated.keys() <= set(expected) or set(expected) - stated.keys() - set(TEACHER):
        raise ValueError(
            f"{file.name} has {', '.join(stated)}; expected {', '.join(expected)}: the features were made "
            "by another version of tools/cache_features.py; make them anew"
        )
    if wrong := _wrong_values(stated):
        raise ValueError(
            f"{file.name} is damaged: {wrong[0]} is {stated[wrong[0]]!r:.80}, which no set has; restore it "
            "from a copy, or make the features anew"
        )
    source = FeatureSource(**stated | {"aspects": tuple(stated["aspects"])})
    if empty and source.num_streams != len(empty):
        raise ValueError(
            f"{file.name} holds the empty caption of {len(empty)} text encoders; expected "
            f"{source.num_streams}: restore it from a copy, or make the features anew"
        )
    return FeatureSet(source, empty)


def _split_streams(tensors: dict[str, Tensor]) -> tuple[CaptionFeatures, ...]:
    """Features of the empty caption by each encoder. Raises: KeyError for tensors without their tokens."""
    number = sum(name.partition(".")[0] == "tokens_LT" for name in tensors)
    found = tuple(
        CaptionFeatures(
            tensors.pop(stream_name("tokens_LT", n)), tensors.pop(stream_name("pooled_P", n), None)
        )
        for n in range(number)
    )
    if tensors:
        raise KeyError(f"it holds {', '.join(tensors)}")
    return found


def _wrong_values(stated: Mapping[str, Any]) -> list[str]:
    """The fields of a FeatureSource with values that nothing could be made of."""
    wrong = [name for name in TEXTS if not isinstance(stated.get(name, ""), str)]
    for name, least in LEAST.items():
        value = stated.get(name, least)
        wrong += [name] * (type(value) is not int or value < least)
    if stated.get("teacher") and stated.get("teacher_patch") == 0:
        wrong.append("teacher_patch")
    if stated["num_views"] not in (1, 2):
        wrong.append("num_views")
    if stated["precision"] not in list(PRECISIONS):
        wrong.append("precision")
    aspects = stated["aspects"]
    if not isinstance(aspects, list) or not all(
        isinstance(aspect, float | int) and 0 < aspect < math.inf for aspect in aspects
    ):
        wrong.append("aspects")
    return wrong


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as one: the length of a header of JSON, and the header."""
    with path.open("rb") as file:
        beginning = file.read(9)
    length = int.from_bytes(beginning[:8], "little")
    return beginning[8:] == b"{" and length <= path.stat().st_size


def find_feature_set(shards: Sequence[Path], remote: RemoteShards | None = None) -> FeatureSet | None:
    """What made the features in some shards, from a file in each folder; None for shards of pictures. A
    URL's is fetched once and kept.

    Raises: ValueError where not all come from the same source.
    """
    files = list(dict.fromkeys(set_file(path, remote) for path in shards))
    for file in files:
        if remote is not None and is_url(file.name) and file.place is not None and not file.place.is_file():
            otherwise = "the shards beside it are taken for pictures"
            is_there = remote.fetch_file(file.name, file.place, otherwise=otherwise)
            if is_there and not _is_safetensors(file.place):
                logger.info("%s is no such file, as of a server that answers all; %s", file.name, otherwise)
                file.place.unlink()
    if not any(file.place is not None and file.place.is_file() for file in files):
        return None
    (first, found), *others = ((file, load_feature_set(file)) for file in files)
    for file, other in others:
        if other.source != found.source:
            raise ValueError(
                f"the features of {first.name} and {file.name} cannot be mixed: "
                f"{differences(found.source, other.source)}; cache them anew alike"
            )
    return found
