"""A small network, and layouts of it that are planned and measured."""

from diffmoe_scale.config.load import load_config
from diffmoe_scale.config.schema import Config
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.plan.measure import Measured, measure_on_rank

SMALL = [
    "model.conditioning=class",
    "model.num_classes=5",
    "model.image_size=16",
    "model.width=64",
    "model.heads=2",
    "model.depth=4",
    "moe.num_experts=4",
    "run.micro_batch=4",
    "run.global_batch=16",
]


def config_of(*settings: str) -> Config:
    return load_config(None, [*SMALL, *settings])


def measure_all(context: ParallelContext, layouts: list[list[str]]) -> list[Measured]:
    """On a rank, one layout after the other."""
    return [measure_on_rank(context, config_of(*settings)) for settings in layouts]
