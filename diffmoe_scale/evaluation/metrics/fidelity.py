"""torch-fidelity: ADM's Inception network, precision and recall. It is imported here alone.

N and M pictures, F features.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any  # torch-fidelity carries no types

import torch
from torch import Tensor, nn

from diffmoe_scale.evaluation.metrics.backbone import Backbone
from diffmoe_scale.evaluation.metrics.weights import check_weights, read_weights
from diffmoe_scale.words import short_reason

INCEPTION = "inception-v3-compat"
CHECKSUM = "6726825d"
FILE = f"weights-inception-2015-12-05-{CHECKSUM}.pth"
SOURCE = f"{FILE} from github.com/toshas/torch-fidelity/releases, v0.2.0"
RESIZE = "bilinear of TensorFlow 1 to 299 x 299, without antialias"
SPATIAL_CHANNELS = 7
"""ADM takes these of 17 x 17 of its layer mixed_6/conv: Mixed_6d.branch1x1 here."""
NEIGHBOURS = 3
DISTANCES_AT_ONCE = 64
"""Rows: 64 x 50,000 distances are 13 MB, and torch-fidelity holds several times that."""


class InceptionNetwork:
    """Outputs `pool` (2048), `spatial` (17 x 17 places x 7 channels = 2023) and `logits` (1008, without the
    bias, as ADM)."""

    widths: Mapping[str, int] = MappingProxyType({"pool": 2048, "spatial": 2023, "logits": 1008})

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.spatial: list[Tensor] = []
        layer: Any = network.get_submodule("Mixed_6d.branch1x1")
        layer.register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: object, output_BCHW: Tensor) -> None:
        # TensorFlow's order, in which ADM's files hold mu_s and sigma_s: the channels of a place together.
        self.spatial = [output_BCHW[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)]

    def __call__(self, pictures_BCHW: Tensor, captions: Sequence[str] | None) -> dict[str, Tensor]:
        pool_BF, logits_BC = self.network(pictures_BCHW)
        return {"pool": pool_BF, "spatial": self.spatial.pop(), "logits": logits_BC}


def load_inception(path: Path, *, checksum: str, device: torch.device) -> Backbone:
    """ADM's Inception network from torch-fidelity's (or pytorch-fid's) weight file.

    Raises: ValueError if the file is missing, has another checksum (`checksum` or, for "", torch-fidelity's),
    holds code or other weights; OSError.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    setting = "the weight file of Inception"
    digest = check_weights(path, setting=setting, checksum=checksum or CHECKSUM, source=SOURCE)
    # The network's constructor reads the file by a plain pickle, which can hold code: not after this.
    read_weights(path, setting)
    try:
        network = FeatureExtractorInceptionV3(INCEPTION, ["2048", "logits_unbiased"], str(path))
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{setting} {path} holds other weights; expected {SOURCE}: {short_reason(error)}"
        ) from error
    return Backbone(INCEPTION, digest[:16], RESIZE, InceptionNetwork(network.to(device)), device)


def precision_recall(samples_NF: Tensor, reference_MF: Tensor) -> tuple[float, float]:
    """Of k-nearest-neighbour balls with k = 3 (arXiv 1904.06991), as ADM's evaluator."""
    from torch_fidelity import metric_prc

    found = metric_prc.prc_features_to_metric(
        samples_NF,
        reference_MF,
        prc_neighborhood=NEIGHBOURS,
        prc_batch_size=DISTANCES_AT_ONCE,
        save_cpu_ram=True,
        verbose=False,
    )
    return found[metric_prc.KEY_METRIC_PRECISION], found[metric_prc.KEY_METRIC_RECALL]
