"""Means and covariances that an ADM reference .npz holds, computed by its authors from all their pictures."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from diffmoe_scale.evaluation.metrics.archive import open_archive
from diffmoe_scale.evaluation.metrics.measures import Need
from diffmoe_scale.evaluation.metrics.moments import Gaussian

KEYS: Mapping[Need, tuple[str, str]] = {"moments": ("mu", "sigma"), "spatial_moments": ("mu_s", "sigma_s")}
ASYMMETRY = 1e-3
"""Of the largest entry; float32 sums differ by less."""


def read_adm_statistics(path: Path, widths: Mapping[Need, int]) -> dict[Need, Gaussian]:
    """Those of `widths` that the file holds; none of a folder or of a file without `mu`.

    Raises: ValueError for a mean without its covariance, other widths and numbers that are not finite.
    """
    if not path.is_file():
        return {}
    with open_archive(path), np.load(path, allow_pickle=False) as arrays:
        names = set(arrays.files)
        return {
            need: _read(arrays, path, KEYS[need], width)
            for need, width in widths.items()
            if need in KEYS and names & set(KEYS[need])
        }


def _read(arrays: Mapping[str, np.ndarray], path: Path, keys: tuple[str, str], width: int) -> Gaussian:
    for key in keys:
        if key not in arrays:
            raise ValueError(f"{path} holds {' or '.join(k for k in keys if k != key)} without {key}")
    try:
        mean_F, covariance_FF = (np.asarray(arrays[key]).astype(np.float64) for key in keys)
    except (ValueError, TypeError) as error:  # an array of objects, which can hold code, or of texts
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: {' or '.join(keys)} is no array of numbers ({reason})") from error
    if mean_F.shape != (width,) or covariance_FF.shape != (width, width):
        shapes = f"{list(mean_F.shape)} and {list(covariance_FF.shape)}"
        raise ValueError(
            f"{path}: {keys[0]} and {keys[1]} have the shapes {shapes}; expected [{width}] and "
            f"[{width}, {width}], the features of this network"
        )
    if not np.isfinite(mean_F).all() or not np.isfinite(covariance_FF).all():
        raise ValueError(f"{path}: {keys[0]} or {keys[1]} holds numbers that are not finite")
    if np.abs(covariance_FF - covariance_FF.T).max() > ASYMMETRY * np.abs(covariance_FF).max():
        raise ValueError(f"{path}: {keys[1]} is not symmetric, so it is no covariance")
    return Gaussian(torch.from_numpy(mean_F), torch.from_numpy(covariance_FF), 0)
