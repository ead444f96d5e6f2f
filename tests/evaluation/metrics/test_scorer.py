from pathlib import Path

import numpy as np
import pytest
import torch

from diffmoe_scale.evaluation.metrics import scorer as module
from diffmoe_scale.evaluation.metrics.backbone import exact_float32
from diffmoe_scale.evaluation.metrics.result import MetricValue
from diffmoe_scale.evaluation.metrics.scorer import Metrics, load_metrics
from tests.evaluation.metrics.networks import FEATURES, LITE0, SIDE, blobs, timm_config, write_lite0

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_lite0(tmp_path_factory.mktemp("lite0") / "lite0.pth")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "reference.npz"
    np.savez(path, arr_0=blobs(40, seed=0))
    return path


@pytest.fixture(scope="module")
def metrics(weights, reference):
    return load_metrics(timm_config(weights, reference), CPU)


def score(metrics: Metrics, pictures_NHWC: np.ndarray, *, batch: int = 16) -> dict[str, MetricValue]:
    scorer = metrics.start()
    for first in range(0, len(pictures_NHWC), batch):
        part_BHWC = pictures_NHWC[first : first + batch]
        scorer.update(part_BHWC, range(first, first + len(part_BHWC)))
    return {value.name: value for value in scorer.values()}


def test_pictures_against_themselves_are_perfect(metrics):
    found = score(metrics, blobs(40, seed=0))
    assert list(found) == list(FEATURES)
    assert abs(found["fd:timm"].value) < 1e-3
    assert found["precision:timm"].value == found["recall:timm"].value == 1.0


def test_noise_is_far_and_other_pictures_of_the_kind_are_near(metrics):
    near, noise = blobs(40, seed=1), np.random.default_rng(2).integers(0, 256, (40, SIDE, SIDE, 3), np.uint8)
    like, unlike = score(metrics, near), score(metrics, noise)
    assert like["fd:timm"].value < 0.5 * unlike["fd:timm"].value
    assert like["kid:timm"].value < 0.1 * unlike["kid:timm"].value
    assert unlike["precision:timm"].value == unlike["recall:timm"].value == 0.0


def test_a_value_says_what_it_depends_on(metrics, reference):
    found = score(metrics, blobs(40, seed=1))["kid:timm"]
    assert (found.pictures, found.reference_pictures, found.reference) == (40, 40, str(reference))
    assert found.backbone == LITE0
    assert len(found.backbone_fingerprint) == len(found.reference_fingerprint) == 16
    assert found.resize.startswith(f"torch's bicubic with antialias to {SIDE} x {SIDE}")
    assert found.settings == {"subsets": 100, "subset_size": 40}


def test_the_order_of_pictures_changes_nothing(metrics):
    pictures_NHWC, scorer = blobs(40, seed=1), metrics.start()
    for places in np.random.default_rng(3).permutation(40).reshape(4, 10):
        scorer.update(pictures_NHWC[places], places.tolist())
    found = {value.name: value.value for value in scorer.values()}
    expected = {name: value.value for name, value in score(metrics, pictures_NHWC).items()}
    # The network itself, in float32, differs in its last digits between batches of 10 and of 16.
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("pictures", "error"),
    [
        (
            blobs(4, 0, side=32),
            r"the samples have 32 x 32 pixels, but .*reference.npz 64 x 64; give a .*any_size",
        ),
        (blobs(4, 0).transpose(0, 3, 1, 2), r"pictures are torch.uint8 \[4, 3, 64, 64\]; expected uint8"),
        (blobs(4, 0) / 255, r"pictures are torch.float64 \[4, 64, 64, 3\]; expected uint8 \[4, H, W, 3\]"),
    ],
)
def test_other_pictures_are_refused(metrics, pictures, error):
    with pytest.raises(ValueError, match=error):
        metrics.start().update(pictures, range(4))


def test_fewer_than_two_pictures_and_a_repeated_one_are_refused(metrics):
    scorer = metrics.start()
    scorer.update(blobs(1, seed=0), [0])
    with pytest.raises(ValueError, match="the samples: 1 picture; metrics compare sets of at least 2"):
        scorer.values()
    scorer.update(blobs(2, seed=0), [1, 0])
    with pytest.raises(ValueError, match="the samples: picture 0 came twice"):
        scorer.values()


def test_the_reference_comes_from_the_cache_until_its_pictures_change(weights, tmp_path, caplog):
    reference, cache = tmp_path / "reference.npz", tmp_path / "cache"
    np.savez(reference, arr_0=blobs(20, seed=0))
    config = timm_config(weights, reference, cache=str(cache))
    first = score(load_metrics(config, CPU), blobs(20, seed=1))
    (file,) = cache.iterdir()
    written = file.stat().st_mtime_ns
    assert score(load_metrics(config, CPU), blobs(20, seed=1)) == first
    assert file.stat().st_mtime_ns == written
    file.write_bytes(file.read_bytes()[:-100])
    assert score(load_metrics(config, CPU), blobs(20, seed=1)) == first
    assert "computed anew: " in caplog.text
    np.savez(reference, arr_0=blobs(20, seed=5))
    changed = score(load_metrics(config, CPU), blobs(20, seed=1))
    assert changed["fd:timm"].value != first["fd:timm"].value
    assert len(list(cache.iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_refused_before_the_work(weights, reference, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    config = timm_config(weights, reference, cache=str(tmp_path / "file" / "cache"))
    with pytest.raises(ValueError, match=r"metrics\.cache: .*file is a file; expected a folder that can be"):
        load_metrics(config, CPU)


def test_a_full_disk_costs_the_cache_alone(weights, reference, metrics, tmp_path, monkeypatch, caplog):
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    found = load_metrics(timm_config(weights, reference, cache=str(tmp_path / "cache")), CPU)
    assert score(found, blobs(9, seed=1)) == score(metrics, blobs(9, seed=1))
    assert "is not kept in metrics.cache: [Errno 28] No space left on device" in caplog.text
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_training_in_tf32_and_bfloat16_changes_nothing(metrics):
    expected, before = score(metrics, blobs(9, seed=1)), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert score(metrics, blobs(9, seed=1)) == expected
        assert torch.get_float32_matmul_precision() == "medium"
        with exact_float32():
            cudnn = torch.backends.cudnn
            assert (torch.get_float32_matmul_precision(), cudnn.enabled, cudnn.allow_tf32) == (
                "highest",
                True,
                False,
            )
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)


def test_values_are_computed_without_tf32(metrics, monkeypatch):
    found: list[str] = []

    def compute(*_: object) -> list[MetricValue]:
        found.append(torch.get_float32_matmul_precision())
        return []

    monkeypatch.setattr(module, "compute_values", compute)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        metrics.start().values()
    finally:
        torch.set_float32_matmul_precision(before)
    assert found == ["highest"]


def test_a_folder_and_an_archive_of_the_same_pictures_are_equal(weights, reference, metrics, tmp_path):
    from PIL import Image

    for number, picture_HWC in enumerate(blobs(40, seed=0)):
        Image.fromarray(picture_HWC).save(Path(tmp_path, f"{number:06d}.png"))
    of_folder = load_metrics(timm_config(weights, tmp_path), CPU)
    pictures = blobs(12, seed=4)
    values = {name: value.value for name, value in score(of_folder, pictures).items()}
    assert values == {name: value.value for name, value in score(metrics, pictures).items()}
