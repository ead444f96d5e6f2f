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
    prometheus_port: Annotated[int, Range(0, 65_535)] = 0
    """The main rank answers Prometheus at this port (/metrics); 0 is none."""
    prometheus_address: str = "127.0.0.1"
    """Where it listens: this machine alone, an address of it, or 0.0.0.0 for every network."""
    profile_steps: Annotated[int, Range(1, 1000)] = 3
    """Steps of a trace, which begins when the file RUN/profile is made (`touch RUN/profile`)."""
    hang_s: Annotated[int, Range(0, 86_400)] = 120
    """Seconds without a finished step after which each rank writes the stacks of its threads into
    RUN/stacks/rank_N.txt; 0 is never."""
    wandb_project: str = "diffmoe_scale"
    """Project name on Weights & Biases."""
