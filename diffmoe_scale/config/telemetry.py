"""Settings of metrics, validation and trackers."""

from dataclasses import dataclass
from typing import Annotated, Literal

from diffmoe_scale.config.section import Range, Section


@dataclass(frozen=True, kw_only=True)
class TelemetryConfig(Section, name="telemetry", is_free=True):
    """What a run reports, and where to."""

    log_every: Annotated[int, Range(1, 10**9)] = 20
    """Steps between lines of metrics.jsonl."""
    validate_every: Annotated[int, Range(0, 10**9)] = 0
    """Steps between validation losses; 0 is never."""
    validation_samples: Annotated[int, Range(1, 10**9)] = 256
    """Samples of one validation."""
    validation_time_samples: Annotated[int, Range(0, 10**9)] = 32
    """The first of them whose loss is also taken at eight fixed times (t = 1/8 to 8/8), with the experts'
    rule of training and with that of sampling: 16 passes of the network. 0 leaves it out."""
    sample_every: Annotated[int, Range(0, 10**9)] = 0
    """Steps between sample grids; 0 is never."""
    sample_prompts: tuple[str, ...] = ()
    """Captions of the sample grids; empty takes the first validation captions."""
    metrics_every: Annotated[int, Range(0, 10**9)] = 0
    """Steps between the metrics (FID and others) that the section `metrics` names; 0 is never."""
    metrics_samples: Annotated[int, Range(2, 10**7)] = 1000
    """Pictures drawn for them with the averaged weights, of the first captions of data.validation, else of
    data.train, or of all labels in turn."""
    tensorboard: bool = True
    """Write TensorBoard events into RUN/tensorboard."""
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    """Weights & Biases; `offline` writes into RUN/wandb."""
    wandb_project: str = "diffmoe_scale"
    """Project name on Weights & Biases."""
