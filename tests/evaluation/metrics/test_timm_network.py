import os
from pathlib import Path
from typing import Any  # timm's networks carry no types

import pytest
import timm
import torch

from diffmoe_scale.evaluation.metrics.timm_network import load_timm
from tests.evaluation.metrics.networks import LITE0, blobs, write_lite0

CPU = torch.device("cpu")
TINY_VIT = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_lite0(tmp_path_factory.mktemp("lite0") / "lite0.pth")


def load(architecture: str, path: Path, **settings: object):
    given: dict[str, object] = {"checksum": "", "size": 0, "device": CPU}
    return load_timm(architecture, path, **(given | settings))  # type: ignore[arg-type]  # any setting


def test_pooled_features_and_logits_are_those_of_the_network(weights):
    backbone = load(LITE0, weights, size=64)
    pictures = torch.from_numpy(blobs(2, seed=0))
    found = backbone.features(pictures)
    network: Any = timm.create_model(LITE0)
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval()
    with torch.no_grad():
        inputs_BCHW = pictures.permute(0, 3, 1, 2) / 127.5 - 1  # its mean and deviation are 0.5
        logits_BC = network(inputs_BCHW)
        pool_BF = network.forward_features(inputs_BCHW).mean((2, 3))
    torch.testing.assert_close(found["logits"], logits_BC, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["pool"], pool_BF, rtol=1e-4, atol=1e-5)
    assert backbone.network.widths == {"pool": 1280, "logits": 1000}


def test_a_transformer_reads_at_the_size_asked_for(tmp_path):
    path = tmp_path / "tiny.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model(TINY_VIT).state_dict(), path)
    pictures = torch.from_numpy(blobs(1, seed=0))
    sizes = {size: load(TINY_VIT, path, size=size) for size in (0, 64)}
    assert "to 224 x 224" in sizes[0].resize and "to 64 x 64" in sizes[64].resize
    assert sizes[64].features(pictures)["pool"].shape == (1, 192)


def test_dinov2_reads_at_224_and_has_no_logits(tmp_path):
    path = tmp_path / "dinov2.pth"
    torch.save(timm.create_model("vit_small_patch14_dinov2").state_dict(), path)
    backbone = load("vit_small_patch14_dinov2", path)
    assert "to 224 x 224" in backbone.resize
    assert {
        name: value.shape for name, value in backbone.features(torch.zeros(1, 8, 8, 3).byte()).items()
    } == {"pool": (1, 384)}


class Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_wrong_weights_are_refused(weights, tmp_path):
    with pytest.raises(
        ValueError, match=r"'tf_efficientnet_lit0' is no architecture of timm; near it: tf_effic"
    ):
        load("tf_efficientnet_lit0", weights)
    with pytest.raises(
        ValueError, match=r"absent, which is no file; expected weights of tf_eff.*, such as timm/tf_eff"
    ):
        load(LITE0, tmp_path / "absent")
    with pytest.raises(
        ValueError, match=r"SHA-256 [0-9a-f]{16}\.\.\., expected abcd: it is damaged or another"
    ):
        load(LITE0, weights, checksum="abcd")
    path = tmp_path / "other.pth"
    torch.save({"conv_stem.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"other\.pth does not load as tf_efficientnet_lite0") as caught:
        load(LITE0, path)
    assert len(str(caught.value)) < len(str(path)) + 400  # not the names of all tensors
    torch.save({"conv_stem.weight": Code(tmp_path / "made")}, path)
    with pytest.raises(ValueError, match=r"other\.pth does not load as tf_efficientnet_lite0"):
        load(LITE0, path)
    assert not (tmp_path / "made").exists()
