"""Inception through torch-fidelity, with random weights in a file of the real layout."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3 as library

from diffmoe_scale.evaluation.metrics.fidelity import load_inception, precision_recall
from diffmoe_scale.evaluation.metrics.weights import sha256_of

CPU = torch.device("cpu")


def make_network() -> library.FeatureExtractorInceptionV3:
    """With the weights of its construction: the constructor wants a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(library.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        return library.FeatureExtractorInceptionV3("random", ["2048", "logits_unbiased"])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(make_network().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def inception(weights):
    return load_inception(weights, checksum=sha256_of(weights)[:8], device=CPU)


def pictures(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 40, 40, 3), dtype=torch.uint8, generator=generator)


def test_outputs_are_those_of_the_library_and_spatial_features_those_of_adm(inception):
    found = inception.features(pictures(2))
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "pool": (2, 2048),
        "spatial": (2, 2023),
        "logits": (2, 1008),
    }
    network = make_network()
    stored: list[torch.Tensor] = []
    network.Mixed_6d.register_forward_pre_hook(lambda _, inputs: stored.append(inputs[0]))
    pool_BF, logits_BC = network(pictures(2).permute(0, 3, 1, 2))
    branch = network.Mixed_6d.branch1x1
    # evaluator.py of guided-diffusion: `spatial = spatial[..., :7]` of [B, 17, 17, 192], then a reshape.
    layer_BHWC = torch.relu(branch.bn(branch.conv(stored[0]))).movedim(1, -1)
    spatial = layer_BHWC[..., :7].reshape(2, -1)
    for name, expected in (("pool", pool_BF), ("logits", logits_BC), ("spatial", spatial)):
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(logits_BC, pool_BF @ network.fc.weight.T)  # ADM leaves out the bias


def test_a_result_says_which_file_and_which_resize_rule(inception, weights):
    assert inception.fingerprint == sha256_of(weights)[:16]
    assert inception.resize == "bilinear of TensorFlow 1 to 299 x 299, without antialias"


class Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_missing_other_and_dangerous_weights_are_refused(weights, tmp_path):
    absent = (
        r"the weight file of Inception is .*absent\.pth, which is no file; expected "
        r"weights-inception-2015-12-05-6726825d\.pth from github\.com/toshas/torch-fidelity/releases, "
        r"v0\.2\.0 with the SHA-256 6726825d\.\.\."
    )
    with pytest.raises(ValueError, match=absent):
        load_inception(tmp_path / "absent.pth", checksum="", device=CPU)
    with pytest.raises(ValueError, match=rf"SHA-256 {sha256_of(weights)[:16]}\.\.\., expected 6726825d"):
        load_inception(weights, checksum="", device=CPU)
    path = tmp_path / "other.pth"
    for content, error in (
        ({"fc.weight": torch.zeros(2, 2)}, "holds other weights; expected weights-inception"),
        ([1, 2], "holds other weights"),
        ({"fc.weight": Code(tmp_path / "made")}, "is not read: .* or holds more than tensors"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=error):
            load_inception(path, checksum=sha256_of(path)[:8], device=CPU)
    for data in (b"", b"no weights", weights.read_bytes()[:1000]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="is not read: it is no weight file of torch"):
            load_inception(path, checksum=sha256_of(path)[:8], device=CPU)
    assert not (tmp_path / "made").exists()


def adm_precision_recall(reference_MF: np.ndarray, samples_NF: np.ndarray) -> tuple[float, float]:
    """ADM's evaluator (compute_prec_recall) as plain loops: squared distances, the third neighbour without
    itself."""

    def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.array([[np.sum((x - y) ** 2) for y in b] for x in a])

    def radii(features: np.ndarray) -> np.ndarray:
        return np.sort(distances(features, features), axis=1)[:, 3]

    between = distances(samples_NF, reference_MF)
    precision = np.mean([np.any(row <= radii(reference_MF)) for row in between])
    recall = np.mean([np.any(row <= radii(samples_NF)) for row in between.T])
    return float(precision), float(recall)


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
def test_precision_and_recall_are_those_of_adm(spread):
    generator = np.random.default_rng(0)
    reference_MF = generator.normal(size=(40, 3))
    samples_NF = spread * generator.normal(size=(55, 3))
    expected = adm_precision_recall(reference_MF, samples_NF)
    found = precision_recall(torch.from_numpy(samples_NF), torch.from_numpy(reference_MF))
    assert found == pytest.approx(expected)
    assert 0 < expected[0] < 1 or 0 < expected[1] < 1
