"""Settings of metrics, validation and trackers."""

from dataclasses import dataclass
from typing import Literal

from diffmoe_scale.config.check import require


@dataclass(frozen=True, kw_only=True)
class TelemetryConfig:
    """What a run reports, and where to."""

    log_every: int = 20
    """Steps between lines of metrics.jsonl."""
    validate_every: int = 0
    """Steps between validation losses; 0 is never."""
    validation_samples: int = 256
    """Samples of one validation."""
    sample_every: int = 0
    """Steps between sample grids; 0 is never."""
    sample_prompts: tuple[str, ...] = ()
    """Captions of the sample grids; empty takes the first validation captions."""
    tensorboard: bool = True
    """Write TensorBoard events into RUN/tensorboard."""
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    """Weights & Biases; `offline` writes into RUN/wandb."""
    wandb_project: str = "diffmoe_scale"
    """Project name on Weights & Biases."""

    def __post_init__(self) -> None:
        require(self.log_every >= 1, "telemetry.log_every", self.log_every, "at least 1")
        require(
            self.validation_samples >= 1,
            "telemetry.validation_samples",
            self.validation_samples,
            "at least 1",
        )
        require(
            self.validate_every >= 0, "telemetry.validate_every", self.validate_every, "0 (never) or more"
        )
        require(self.sample_every >= 0, "telemetry.sample_every", self.sample_every, "0 (never) or more")
