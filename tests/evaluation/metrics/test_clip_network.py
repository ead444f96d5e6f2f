import json
import os
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from safetensors.torch import save_file

from diffmoe_scale.config.metrics import MetricsConfig
from diffmoe_scale.evaluation.metrics.clip_network import load_clip
from diffmoe_scale.evaluation.metrics.mmd import cmmd
from diffmoe_scale.evaluation.metrics.scorer import load_metrics
from tests.encoders.text.texts import TOWER
from tests.evaluation.metrics.networks import blobs

CPU = torch.device("cpu")
CAPTIONS = ["a red circle", "two blue squares", "!"]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return open_clip.CLIP(**TOWER).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, network):
    folder = tmp_path_factory.mktemp("clip")
    description = {"model_cfg": TOWER, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(description), encoding="utf-8")
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "tiny-clip.json").write_text(json.dumps(TOWER), encoding="utf-8")
    open_clip.add_model_config(folder / "tiny-clip.json")
    return folder


def test_features_are_those_of_open_clips_own_preparation_and_network(folder, network):
    pictures = blobs(3, seed=0, side=32)  # its own size: no resize
    found = load_clip("local-dir", folder, checksum="", device=CPU).features(
        torch.from_numpy(pictures), CAPTIONS
    )
    mean, std = (np.array(values, np.float32) for values in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    inputs = torch.from_numpy((pictures.astype(np.float32) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        pool_BF = network.encode_image(inputs)
        text_BF = network.encode_text(open_clip.SimpleTokenizer(context_length=16)(CAPTIONS))
    torch.testing.assert_close(found["pool"], pool_BF, rtol=1e-4, atol=1e-5)
    cosines_B = (pool_BF * text_BF).sum(1) / pool_BF.norm(dim=1) / text_BF.norm(dim=1)
    torch.testing.assert_close(found["cosines"], cosines_B, rtol=1e-4, atol=1e-5)


def test_a_weight_file_gives_the_same_features_as_its_folder(folder):
    pictures = torch.from_numpy(blobs(2, seed=0))
    of_folder = load_clip("local-dir", folder, checksum="", device=CPU)
    of_file = load_clip("tiny-clip", folder / "open_clip_model.safetensors", checksum="", device=CPU)
    assert torch.equal(of_folder.features(pictures)["pool"], of_file.features(pictures)["pool"])
    assert (of_folder.name, of_file.name) == (folder.name, "tiny-clip")


def test_another_description_of_the_same_weights_has_another_fingerprint(folder, tmp_path):
    before = load_clip("local-dir", folder, checksum="", device=CPU).fingerprint
    shutil.copy(folder / "open_clip_model.safetensors", tmp_path)
    description = {"model_cfg": TOWER, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(description), encoding="utf-8")
    assert load_clip("local-dir", tmp_path, checksum="", device=CPU).fingerprint != before
    shutil.copy(folder / "open_clip_config.json", tmp_path)
    assert load_clip("local-dir", tmp_path, checksum="", device=CPU).fingerprint == before


def test_cmmd_and_the_clip_score_come_out_of_a_stream(folder, tmp_path):
    np.savez(tmp_path / "reference.npz", arr_0=blobs(9, seed=0))
    config = MetricsConfig(
        names=("cmmd", "clip_score"),
        reference=str(tmp_path / "reference.npz"),
        clip_architecture="local-dir",
        clip_weights=str(folder),
    )
    metrics, pictures, captions = load_metrics(config, CPU), blobs(9, seed=1), CAPTIONS * 3
    scorer = metrics.start()
    with pytest.raises(
        ValueError, match="clip_score compares pictures with their captions, and these have none"
    ):
        scorer.update(pictures, range(9))
    for first in range(0, 9, 3):
        scorer.update(pictures[first : first + 3], range(first, first + 3), captions[first : first + 3])
    distance, score = scorer.values()
    backbone = metrics.backbones["clip"]
    found = backbone.features(torch.from_numpy(pictures), captions)
    reference = backbone.features(torch.from_numpy(blobs(9, seed=0)))
    assert distance.value == pytest.approx(cmmd(found["pool"], reference["pool"]), rel=1e-3)
    assert score.value == pytest.approx(100 * found["cosines"].clamp(min=0).mean().item(), rel=1e-4)
    assert (distance.reference_pictures, score.reference_pictures, score.reference) == (9, 0, "")


class Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_wrong_files_are_refused(folder, tmp_path):
    def load(architecture: str, path: Path, checksum: str = "") -> None:
        load_clip(architecture, path, checksum=checksum, device=CPU)

    weights = folder / "open_clip_model.safetensors"
    with pytest.raises(ValueError, match="'ViT-B-31' is no architecture of open_clip; near it: ViT-B-32"):
        load("ViT-B-31", weights)
    with pytest.raises(ValueError, match=r"absent\.pt, which is no file; expected weights of tiny-clip"):
        load("tiny-clip", tmp_path / "absent.pt")
    with pytest.raises(
        ValueError, match=r"has no open_clip_config\.json; expected a folder with open_clip_conf"
    ):
        load("local-dir", tmp_path)
    with pytest.raises(ValueError, match=r"expected 1234: it is damaged or another file"):
        load("tiny-clip", weights, "1234")
    with pytest.raises(ValueError, match=r"does not load as ViT-B-32: .*width changed"):
        load("ViT-B-32", weights)
    with pytest.raises(
        ValueError, match=r"does not load as roberta-ViT-B-32: its text tower has hf_model_name"
    ):
        load("roberta-ViT-B-32", weights)
    path = tmp_path / "code.pt"
    torch.save({"positional_embedding": Code(tmp_path / "made")}, path)
    with pytest.raises(ValueError, match=r"code\.pt does not load as tiny-clip"):
        load("tiny-clip", path)
    assert not (tmp_path / "made").exists()
