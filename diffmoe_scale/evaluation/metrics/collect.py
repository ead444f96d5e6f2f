"""All that metrics need of the pictures on disk, in one pass by one rank or several, and kept in a cache."""

import hashlib
import logging
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any  # objects travel pickled; numpy's savez takes options by name too

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from diffmoe_scale.config.check import RunError
from diffmoe_scale.evaluation.metrics.archive import open_archive
from diffmoe_scale.evaluation.metrics.backbone import Backbone
from diffmoe_scale.evaluation.metrics.measures import Need
from diffmoe_scale.evaluation.metrics.pictures import PictureSource
from diffmoe_scale.evaluation.metrics.statistics import PictureStatistics

logger = logging.getLogger(__name__)

FORMAT = 2
"""Of what the files of metrics.cache hold; those of another number are not found."""


def collect(
    source: PictureSource,
    backbone: Backbone,
    needs: Sequence[Need],
    *,
    batch: int,
    group: dist.ProcessGroup | None = None,
) -> PictureStatistics:
    """Statistics of all pictures; of several ranks the group's first one holds them. Collective over a gloo
    group.

    Raises: ValueError, RunError or OSError, on all ranks, for a picture that is not read.
    """
    found = PictureStatistics(needs, backbone.network.widths)
    rank, ranks = (0, 1) if group is None else (group.rank(), group.size())
    failure: Exception | None = None
    title = f"{backbone.name} of {source.path.name}"
    try:
        with tqdm(total=source.count, desc=title, unit="image", disable=None if rank == 0 else True) as bar:
            for part in source.batches(batch, rank=rank, ranks=ranks):
                captions = part.captions if "captions" in needs else None
                pictures_BHWC = torch.from_numpy(part.pictures_BHWC)
                found.update(backbone.features(pictures_BHWC, captions), torch.tensor(part.places))
                bar.update(len(part.places) * ranks)
    except (ValueError, RunError, OSError) as error:
        failure = error
    if failure := _any_failure(failure, group):
        raise failure
    if group is not None:
        found.merge(group)
    return found


def _any_failure(failure: Exception | None, group: dist.ProcessGroup | None) -> Exception | None:
    if group is None:
        return failure
    failures: list[Any] = [None] * group.size()
    dist.all_gather_object(failures, failure, group=group)
    return next((found for found in failures if found is not None), None)


def collect_cached(
    source: PictureSource,
    backbone: Backbone,
    needs: Sequence[Need],
    *,
    cache: Path | None,
    batch: int,
    group: dist.ProcessGroup | None = None,
) -> tuple[PictureStatistics, str]:
    """As `collect`, from the cache where it holds these pictures under this network; and the pictures'
    fingerprint ("" on other ranks)."""
    is_first = group is None or group.rank() == 0
    fingerprint = source.fingerprint() if is_first else ""
    file = cache / _name(backbone, fingerprint) if cache is not None and is_first else None
    known = _read(file, needs, backbone) if file is not None else None
    answer = [known is not None]
    if group is not None:
        dist.broadcast_object_list(answer, group=group, group_src=0)
    if answer[0]:
        return known or PictureStatistics(needs, backbone.network.widths), fingerprint
    found = collect(source, backbone, needs, batch=batch, group=group)
    if file is not None:
        try:
            _write(file, found)
        except OSError as error:  # a full disk must not cost the work that is done
            logger.warning("%s is not kept in metrics.cache: %s", file, error)
    return found, fingerprint


def _name(backbone: Backbone, pictures: str) -> str:
    made_of = repr((FORMAT, backbone.name, backbone.fingerprint, backbone.resize, pictures))
    return f"{hashlib.sha256(made_of.encode()).hexdigest()[:24]}.npz"


def _read(file: Path, needs: Sequence[Need], backbone: Backbone) -> PictureStatistics | None:
    """None if the file is missing, damaged, or lacks some of `needs`."""
    if not file.is_file():
        return None
    found = PictureStatistics(needs, backbone.network.widths)
    try:
        with open_archive(file), np.load(file, allow_pickle=False) as arrays:
            if not set(needs) <= {name.partition(".")[0] for name in arrays.files}:
                return None
            places_N = torch.from_numpy(arrays["places"])
            for need, moments in (("moments", found.moments), ("spatial_moments", found.spatial_moments)):
                if need in needs:
                    moments.count = len(places_N)
                    moments.sum_F = torch.from_numpy(arrays[f"{need}.sum"])
                    moments.products_FF = torch.from_numpy(arrays[f"{need}.products"])
            if "rows" in needs:
                found.rows.update(torch.from_numpy(arrays["rows"]), places_N)
    except ValueError as error:
        logger.warning("computed anew: %s", error)
        return None
    found.places.add(places_N)
    logger.info("%s: from the cache", file)
    return found


def _write(file: Path, found: PictureStatistics) -> None:
    """Raises: OSError."""
    arrays = {"places": found.places.tensor().sort().values}
    if "rows" in found.needs:
        arrays["rows"] = found.rows.gather()
    for need, moments in (("moments", found.moments), ("spatial_moments", found.spatial_moments)):
        if need in found.needs:
            arrays |= {f"{need}.sum": moments.sum_F, f"{need}.products": moments.products_FF}
    contents: dict[str, Any] = {name: tensor.numpy() for name, tensor in arrays.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    # Not `replace_file`: it takes all bytes at once, and these can be hundreds of megabytes.
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as target:
            np.savez(target, **contents)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
