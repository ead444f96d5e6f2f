import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any  # what ranks send back

import numpy as np
import pytest
import torch
from PIL import Image

from diffmoe_scale.evaluation.metrics.backbone import Backbone
from diffmoe_scale.evaluation.metrics.reference import load_reference, reference_size
from diffmoe_scale.parallel.context import ParallelContext
from tests.evaluation.metrics.networks import blobs
from tests.evaluation.metrics.test_damaged_archives import damage
from tests.ranks import run_on_ranks


class Corners:
    """Outputs of ADM's names: the first pixel and the last."""

    widths: Mapping[str, int] = MappingProxyType({"pool": 3, "spatial": 3})

    def __call__(
        self, pictures_BCHW: torch.Tensor, captions: Sequence[str] | None
    ) -> dict[str, torch.Tensor]:
        return {"pool": pictures_BCHW[:, :, 0, 0].float(), "spatial": pictures_BCHW[:, :, -1, -1].float()}


def backbone() -> Backbone:
    return Backbone("corners", "0" * 16, "none", Corners(), torch.device("cpu"))


def load(path, needs, **settings):
    return load_reference(path, backbone(), needs, **({"cache": None, "batch": 4} | settings))


def test_statistics_that_the_file_holds_are_taken_and_the_rest_computed(tmp_path):
    path = tmp_path / "reference.npz"
    pictures = blobs(10, seed=0)
    np.savez(path, arr_0=pictures, mu=np.ones(3), sigma=np.eye(3))
    found = load(path, ["moments", "spatial_moments", "rows"])
    assert found.gaussians["moments"].mean_F.tolist() == [1, 1, 1]
    expected = np.cov(pictures[:, -1, -1].astype(float), rowvar=False)
    np.testing.assert_allclose(found.gaussians["spatial_moments"].covariance_FF, expected)
    assert found.rows_MF is not None
    np.testing.assert_array_equal(found.rows_MF, pictures[:, 0, 0])
    assert found.counts == {"moments": 0, "spatial_moments": 10, "rows": 10}


def test_a_file_of_statistics_alone_serves_what_needs_no_pictures(tmp_path):
    path = tmp_path / "reference.npz"
    np.savez(path, mu=np.ones(3), sigma=np.eye(3))
    assert reference_size(path) is None
    assert load(path, ["moments"]).counts == {"moments": 0}
    with pytest.raises(ValueError, match=r"holds .mu, sigma.; expected .*arr_0.*; corners needs"):
        load(path, ["moments", "rows"])


def test_one_picture_is_no_reference(tmp_path):
    np.savez(tmp_path / "one.npz", arr_0=blobs(1, seed=0))
    with pytest.raises(ValueError, match=r"one\.npz: 1 picture; metrics compare sets of at least 2"):
        load(tmp_path / "one.npz", ["moments"])


@pytest.mark.slow
def test_a_damaged_cache_is_computed_anew(tmp_path):
    np.savez(tmp_path / "reference.npz", arr_0=blobs(10, seed=0))
    random, cache = np.random.default_rng(0), tmp_path / "cache"

    def found() -> tuple[list[float], list[float]]:
        reference = load(tmp_path / "reference.npz", ["moments", "rows"], cache=cache)
        assert reference.rows_MF is not None
        covariance_FF = reference.gaussians["moments"].covariance_FF
        return covariance_FF.flatten().tolist(), reference.rows_MF.flatten().tolist()

    expected = found()
    (file,) = cache.iterdir()
    data = file.read_bytes()
    for _ in range(200):
        file.write_bytes(damage(data, random))
        assert found() == expected


def test_a_cache_that_lacks_something_is_computed_anew_and_one_that_has_more_is_used(tmp_path, caplog):
    np.savez(tmp_path / "reference.npz", arr_0=blobs(10, seed=0))
    written = []
    for needs in (["moments"], ["moments", "rows"], ["rows"]):
        found = load(tmp_path / "reference.npz", needs, cache=tmp_path / "cache")
        assert set(found.counts) == set(needs) and (found.rows_MF is not None) == ("rows" in needs)
        (file,) = (tmp_path / "cache").iterdir()
        written.append(file.stat().st_mtime_ns)
    assert written[0] < written[1] == written[2]
    damaged = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert damaged == []


def on_a_rank(context: ParallelContext, folder: Any) -> Any:
    settings = {"cache": folder / "cache", "group": context.control_group}
    first = load(folder / "good.npz", ["moments", "rows"], **settings)
    again = load(folder / "good.npz", ["moments", "rows"], **settings)
    try:
        load(folder / "bad", ["moments"], **settings)
        message = ""
    except ValueError as error:
        message = str(error)
    if context.rank > 0:
        return message, first.rows_MF, again.rows_MF
    assert first.rows_MF is not None and again.rows_MF is not None
    return message, first.rows_MF.numpy(), again.rows_MF.numpy(), first.gaussians["moments"].mean_F.numpy()


def test_ranks_share_the_work_and_fail_together(tmp_path):
    pictures = blobs(10, seed=0)
    np.savez(tmp_path / "good.npz", arr_0=pictures)
    (tmp_path / "bad").mkdir()
    for number, picture_HWC in enumerate(pictures):
        Image.fromarray(picture_HWC).save(tmp_path / "bad" / f"{number}.png")
    (tmp_path / "bad" / "6.png").write_bytes(b"broken")  # of the second rank's share
    main, other = run_on_ranks(on_a_rank, 2, tmp_path)
    for message in (main[0], other[0]):
        assert "6.png is no picture that is read" in message
    np.testing.assert_array_equal(main[1], pictures[:, 0, 0])
    np.testing.assert_array_equal(main[2], pictures[:, 0, 0])
    np.testing.assert_allclose(main[3], pictures[:, 0, 0].mean(0))
    assert other[1:] == (None, None)
