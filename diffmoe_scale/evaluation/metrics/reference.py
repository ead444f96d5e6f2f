"""What samples are compared with: statistics that a file holds, or those of its pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from diffmoe_scale.evaluation.metrics.adm_statistics import read_adm_statistics
from diffmoe_scale.evaluation.metrics.archive import open_archive
from diffmoe_scale.evaluation.metrics.backbone import Backbone
from diffmoe_scale.evaluation.metrics.collect import collect_cached
from diffmoe_scale.evaluation.metrics.measures import Need
from diffmoe_scale.evaluation.metrics.moments import Gaussian
from diffmoe_scale.evaluation.metrics.pictures import PICTURES, Size, open_pictures
from diffmoe_scale.evaluation.metrics.statistics import OUTPUTS
from diffmoe_scale.evaluation.metrics.weights import sha256_of


@dataclass(frozen=True)
class Reference:
    """Under one network: Gaussians of `moments` and `spatial_moments`, and all features [M, F].

    `counts` are of the pictures behind each; 0 where the file does not say. Ranks but the first hold nothing.
    """

    path: Path
    fingerprint: str
    gaussians: dict[Need, Gaussian]
    rows_MF: Tensor | None
    counts: dict[Need, int]


def load_reference(
    path: Path,
    backbone: Backbone,
    needs: Sequence[Need],
    *,
    cache: Path | None,
    batch: int,
    group: dist.ProcessGroup | None = None,
) -> Reference:
    """Statistics that an ADM .npz holds are taken as they are; all others are computed from its pictures.
    Collective over a gloo group.

    Raises: ValueError, RunError or OSError, on all ranks, for what cannot be read.
    """
    widths = backbone.network.widths
    known: dict[Need, Gaussian] = {}
    if "spatial" in widths:  # Inception's alone are ADM's
        wanted: dict[Need, int] = {need: widths[OUTPUTS[need]] for need in needs if need != "rows"}
        known = read_adm_statistics(path, wanted)
    counts = dict.fromkeys(known, 0)
    missing = [need for need in needs if need not in known]
    if not missing:
        return Reference(path, sha256_of(path)[:16], known, None, counts)
    try:
        source = open_pictures(path)
    except ValueError as error:
        raise ValueError(f"{error}; {backbone.name} needs the pictures themselves") from error
    found, fingerprint = collect_cached(source, backbone, missing, cache=cache, batch=batch, group=group)
    if group is not None and group.rank() > 0:
        return Reference(path, fingerprint, known, None, counts)
    found.check_places(str(path))
    moments = {"moments": found.moments, "spatial_moments": found.spatial_moments}
    gaussians = known | {need: moments[need].gaussian() for need in missing if need in moments}
    rows_MF = found.rows.gather() if "rows" in missing else None
    return Reference(path, fingerprint, gaussians, rows_MF, counts | dict.fromkeys(missing, found.count))


def reference_size(path: Path) -> Size | None:
    """Height and width of its pictures, or of the first of a folder; None for a file without pictures.

    Raises: ValueError for pictures in another layout.
    """
    if path.is_file():
        with open_archive(path) as archive:
            if f"{PICTURES}.npy" not in archive.namelist():
                return None
    return open_pictures(path).size
