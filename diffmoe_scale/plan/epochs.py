"""How many steps the samples of a data set give, by bucket where the data is read."""

from collections.abc import Mapping
from dataclasses import dataclass

from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.reading.build import open_reader


@dataclass(frozen=True)
class Epochs:
    """Samples of the data set (0: not known), and the steps that those of each bucket give."""

    samples: int = 0
    steps_by_bucket: Mapping[str, float] | None = None


def read_epochs(config: Config) -> Epochs:
    """Of the run's training data, whose indexes are read (and written where they are missing). Raises:
    ValueError for shards that cannot be read."""
    reader = open_reader(config, config.data.train)
    plan = reader.plan(global_batch=config.run.global_batch, micro_batch=config.run.micro_batch)
    # In the last stage, whose images are the largest; shares of mixed data sets are in a unit of their own.
    _, shapes = plan.stages[-1]
    unit = reader.num_samples / sum(plan.shares)
    steps = {
        name: share * unit / (plan.micro_batches * shape.count)
        for name, share, shape in zip(plan.names, plan.shares, shapes, strict=True)
    }
    return Epochs(reader.num_samples, steps if len(steps) > 1 else None)
