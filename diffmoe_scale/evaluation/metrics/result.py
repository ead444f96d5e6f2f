"""A metric's value, and everything without which it must not be compared with another."""

from dataclasses import asdict, dataclass, field
from typing import Any  # JSON trees


@dataclass(frozen=True, kw_only=True)
class MetricValue:
    """One number. Two are comparable if all else but `value`, `error` and the pictures are equal."""

    name: str
    """As asked for, such as `fid` or `kid:timm`."""
    value: float
    error: float | None
    """Standard deviation over the subsets of KID and the parts of the Inception Score, standard error of the
    CLIP score; None where there is none, as of a single part."""
    pictures: int
    """N, the number of samples."""
    backbone: str
    """Architecture of the network."""
    backbone_fingerprint: str
    """First 16 hexadecimal digits of the SHA-256 of its weight file."""
    resize: str
    """How pictures were brought to the network's size."""
    reference: str = ""
    """Path of the pictures or statistics compared with; "" for metrics without."""
    reference_pictures: int = 0
    """Their number; 0 where there is no reference or its file does not say."""
    reference_fingerprint: str = ""
    """First 16 hexadecimal digits of the SHA-256 of the reference."""
    settings: dict[str, float] = field(default_factory=dict)
    """Numbers that decide the value, such as `subsets`."""

    def as_tree(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        error = "" if self.error is None else f" +- {self.error:.4g}"
        count = f"{self.reference_pictures} of " if self.reference_pictures else ""
        against = f" against {count}{self.reference}" if self.reference else ""
        settings = "".join(f", {name} {value:g}" for name, value in self.settings.items())
        return (
            f"{self.name} {self.value:.6g}{error} ({self.pictures} pictures{against}; {self.backbone} "
            f"{self.backbone_fingerprint}; {self.resize}{settings})"
        )
