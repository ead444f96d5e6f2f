"""The pictures of a job: what is there, what is missing, and drawing that."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from diffmoe_scale.evaluation.harness.job import Job
from diffmoe_scale.evaluation.harness.records import RecordWriter, read_records
from diffmoe_scale.files import replace_file
from diffmoe_scale.json_text import parse_json
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.sampling.batch import Generated, generate_batches
from diffmoe_scale.sampling.cost import measure_cost
from diffmoe_scale.sampling.loading import Pipeline
from diffmoe_scale.sampling.metadata import picture_metadata
from diffmoe_scale.sampling.picture_files import encode_picture
from diffmoe_scale.sampling.ranks import Ranks
from diffmoe_scale.sampling.thresholds import describe_thresholds, find_selection
from diffmoe_scale.telemetry.picture_grid import to_pixels

DRAWN = "drawn"
PICTURES = "pictures"
CHECKED = "checked.json"
"""Digest, bytes and time of the pictures that were read last."""


@dataclass(frozen=True)
class Part:
    """The share of all pictures that one process of a job array draws: number `index` of `count`, from 0."""

    index: int = 0
    count: int = 1

    def of(self, places: Sequence[int]) -> list[int]:
        return [place for place in places if place % self.count == self.index]


@dataclass(frozen=True)
class DrawnPicture:
    """A picture on disk; `score` is that of an exact rule. Capacity, network calls, operations and seconds
    are means of the batch that it was drawn in."""

    digest: str
    score: float | None
    capacity: float
    calls: float
    flops: float
    seconds: float
    thresholds: str
    """Of experts, where they were calibrated for `sampling.capacity`."""


def read_drawn(folder: Path) -> dict[int, DrawnPicture]:
    """The pictures of a job's folder by place. Raises: ValueError for records of another kind."""
    found: dict[int, DrawnPicture] = {}
    for entry in read_records(folder, DRAWN):
        try:
            scores = entry["scores"] or [None] * len(entry["places"])
            for place, digest, score in zip(entry["places"], entry["digests"], scores, strict=True):
                found[int(place)] = DrawnPicture(
                    str(digest),
                    None if score is None else float(score),
                    float(entry["capacity"]),
                    float(entry["calls"]),
                    float(entry["flops"]),
                    float(entry["seconds"]),
                    str(entry["thresholds"]),
                )
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"{folder} has a record of pictures that is not of this version ({error!r}); remove the "
                "folder and run again"
            ) from error
    return found


def missing_places(job: Job, folder: Path, part: Part) -> list[int]:
    """Places of this part whose pictures are not there, in order."""
    drawn = read_drawn(folder)
    there = {place for place in drawn if (folder / PICTURES / job.suite.file_of(place)).is_file()}
    return [place for place in part.of(range(job.suite.count)) if place not in there]


def digest_of(data: bytes) -> str:
    return sha256(data).hexdigest()[:16]


def read_picture(job: Job, folder: Path, place: int, drawn: DrawnPicture) -> bytes:
    """The file of a picture. Raises: ValueError if it is not the one that was drawn."""
    path = folder / PICTURES / job.suite.file_of(place)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{path} was removed; run again to have it drawn anew") from error
    if digest_of(data) != drawn.digest:
        raise ValueError(f"{path} is not the picture that was drawn; remove it and run again")
    return data


def check_pictures(job: Job, folder: Path, drawn: Mapping[int, DrawnPicture]) -> None:
    """Read the pictures that were not read since their files changed last. Raises: ValueError for one that is
    not what was drawn, OSError."""
    path = folder / CHECKED
    try:
        known = parse_json(path.read_bytes())
    except (OSError, ValueError):
        known = {}
    known = known if isinstance(known, dict) else {}
    found = {}
    for place, picture in sorted(drawn.items()):
        name = job.suite.file_of(place)
        try:
            stat = (folder / PICTURES / name).stat()
            found[name] = [picture.digest, stat.st_size, stat.st_mtime_ns]
        except FileNotFoundError:
            pass  # `read_picture` says so
        if name not in found or known.get(name) != found[name]:
            read_picture(job, folder, place, picture)
    if found != known:
        replace_file(path, json.dumps(found).encode())


def draw(
    pipeline: Pipeline, job: Job, folder: Path, missing: Sequence[int], part: Part, ranks: Ranks
) -> None:
    """Draw this rank's share of the missing pictures: each is a whole file before its line is in the records.
    Collective over the ranks. Raises: OSError."""
    pipeline = replace(pipeline, config=replace(pipeline.config, sampling=job.sampling))
    selection = find_selection(pipeline, job.sampling)
    share = ranks.share(missing)
    # A repeated picture is as good as any for a rank that has none left: it is not written.
    padded = [*share.places, *([missing[0]] * (share.count - len(share.places)))]
    rank = pipeline.context.rank if pipeline.context else 0
    begin, first = time.perf_counter(), 0
    with RecordWriter(folder / f"{DRAWN}-{part.index + 1}of{part.count}-{rank}.jsonl") as records:
        for batch in generate_batches(
            pipeline.networks,
            [job.request(place) for place in padded],
            job.sampling,
            selection=selection,
            title=job.title,
            has_progress=ranks.is_main,
        ):
            places = padded[first : first + len(batch.requests)]
            new = share.places[first : first + len(places)]
            first += len(places)
            seconds = (time.perf_counter() - begin) / len(places)
            if new:
                digests = [
                    _write(pipeline, job, folder, place, pixels_HWC, selection)
                    for place, pixels_HWC in zip(new, to_pixels(batch.images_BCHW[: len(new)]), strict=True)
                ]
                records.write(
                    {
                        "places": new,
                        "digests": digests,
                        "scores": job.suite.check(batch.images_BCHW[: len(new)], new),
                        "seconds": seconds,
                        "thresholds": describe_thresholds(selection),
                        **_cost(pipeline, batch),
                    }
                )
            begin = time.perf_counter()


def _cost(pipeline: Pipeline, batch: Generated) -> dict[str, float]:
    cost = measure_cost(
        pipeline,
        pipeline.config.sampling,
        batch.loads,
        calls=batch.calls,
        num_pictures=len(batch.requests),
    )
    return asdict(cost)


def _write(
    pipeline: Pipeline, job: Job, folder: Path, place: int, pixels_HWC: np.ndarray, selection: Selection
) -> str:
    """The digest of the file that was written."""
    data = encode_picture(pixels_HWC, "png", picture_metadata(pipeline, job.request(place), selection))
    path = folder / PICTURES / job.suite.file_of(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, data)
    return digest_of(data)
