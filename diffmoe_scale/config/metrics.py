"""Settings of metrics such as FID: which, against what, and the frozen networks behind them."""

from dataclasses import dataclass
from typing import Annotated

from diffmoe_scale.config.section import PATH, Range, Section


@dataclass(frozen=True, kw_only=True)
class MetricsConfig(Section, name="metrics", is_free=True):
    """Metrics of pictures. Weights are local files; nothing is downloaded."""

    names: tuple[str, ...] = ()
    """fid, sfid, is, precision, recall, kid (Inception), cmmd, clip_score (CLIP), or NAME:NETWORK of fd, kid,
    precision, recall or is with inception, timm or clip, as fd:timm; empty is none."""
    reference: Annotated[str, PATH] = ""
    """What samples are compared with: an ADM reference .npz or a folder of pictures."""
    inception: Annotated[str, PATH] = ""
    """Weight file of Inception: weights-inception-2015-12-05-6726825d.pth of torch-fidelity."""
    inception_checksum: str = ""
    """How the SHA-256 of that file begins; empty is torch-fidelity's, 6726825d."""
    timm_architecture: str = ""
    """Name of a network of timm, such as vit_large_patch14_dinov2."""
    timm_weights: Annotated[str, PATH] = ""
    """Its weight file (.safetensors or .pth)."""
    timm_checksum: str = ""
    """How the SHA-256 of that file begins; empty takes any."""
    timm_size: Annotated[int, Range(0, 4096)] = 0
    """Pixels at which it reads pictures; 0 is its own size, and 224 for DINOv2."""
    clip_architecture: str = ""
    """Name of a network of open_clip, such as ViT-L-14-336, or local-dir for a folder with a description."""
    clip_weights: Annotated[str, PATH] = ""
    """Its weight file, or the folder."""
    clip_checksum: str = ""
    """How the SHA-256 of that file begins; empty takes any."""
    cache: Annotated[str, PATH] = ""
    """Folder that keeps what was computed of the reference, under a fingerprint of its pictures and of the
    network; empty keeps nothing."""
    batch: Annotated[int, Range(1, 10**6)] = 64
    """Reference pictures that a network sees at once."""
    kid_subsets: Annotated[int, Range(1, 10**6)] = 100
    """Subsets of KID."""
    kid_subset_size: Annotated[int, Range(2, 10**6)] = 1000
    """Pictures of a subset of KID; all pictures if there are fewer."""
    any_size: bool = False
    """Compare pictures of different sizes; networks resize all pictures, so that nothing would show it."""
