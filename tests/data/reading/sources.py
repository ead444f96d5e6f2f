"""A source of samples of small shards."""

from pathlib import Path
from typing import Any  # settings of any type

from PIL import Image

from diffmoe_scale.config.data import DataConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.data.order.order import FixedOrder
from diffmoe_scale.data.reading.files import ShardFiles
from diffmoe_scale.data.reading.source import SampleSource
from diffmoe_scale.data.shards.catalog import ShardCatalog
from tests.data.samples import Members, encode, write_shards

IMAGE = encode(Image.new("RGB", (4, 4), "red"))


def make_source(
    folder: Path,
    counts: list[int],
    *,
    replaced: dict[str, Members] | None = None,
    is_augmented: bool = False,
    num_classes: int = 0,
    **settings: Any,
) -> SampleSource:
    catalog = ShardCatalog(write_shards(folder, counts, replaced=replaced))
    model = ModelConfig(
        image_size=4, conditioning="class" if num_classes else "text", num_classes=num_classes
    )
    config = DataConfig(**settings)
    return SampleSource(
        config=config,
        model=model,
        seed=0,
        catalog=catalog,
        files=ShardFiles(catalog),
        order=FixedOrder(catalog.counts),
        is_augmented=is_augmented,
    )
