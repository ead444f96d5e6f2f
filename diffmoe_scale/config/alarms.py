"""Settings of when a run's figures are said to be wrong."""

from dataclasses import dataclass
from typing import Annotated

from diffmoe_scale.config.section import Range, Section


@dataclass(frozen=True, kw_only=True)
class AlarmsConfig(Section, name="alarms", is_free=True):
    """When a logged step says that something is wrong with the experts or with a rank. An alarm is a warning
    in the log when it begins, and a line when it is over; training goes on. `min_load=0`, and the largest
    value of each other, keep that alarm silent."""

    after: Annotated[int, Range(0, 10**9)] = 500
    """Steps before experts are judged: routers and thresholds need some to settle."""
    min_load: Annotated[float, Range(0, 1)] = 0.1
    """A dead expert takes less than this of a fair share of the tokens, by the rule of inference."""
    max_load: Annotated[float, Range(1, 10_000)] = 4.0
    """A greedy expert takes more than this many fair shares, by the rule of inference."""
    max_overlap: Annotated[float, Range(0, 1)] = 0.7
    """Largest share of an expert's tokens that another one takes too, mean over pairs of a block: experts
    that take the same tokens are one."""
    max_uncovered: Annotated[float, Range(0, 1)] = 0.8
    """Largest share of tokens that no expert of a block takes."""
    max_similarity: Annotated[float, Range(0, 1)] = 0.99
    """Largest cosine between the router's weights of two experts of a block."""
    max_capacity_error: Annotated[float, Range(0, 100)] = 0.5
    """Largest distance of the capacity by the rule of inference from the capacity of training."""
    max_data_share: Annotated[float, Range(0, 1)] = 0.5
    """Largest share of a step in which ranks wait for data."""
    max_straggle: Annotated[float, Range(0, 1)] = 0.25
    """Largest share of a step by which one rank waits longer for data, or encodes longer, than the mean."""
