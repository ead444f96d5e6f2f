"""Sets of features for tests: a tiny autoencoder and text tower, raw shards, and what is made of them."""

from collections.abc import Sequence
from pathlib import Path

from diffmoe_scale.config.load import load_config
from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.reading.batch import Batch
from diffmoe_scale.data.reading.build import build_reader
from diffmoe_scale.data.reading.reader import Reader
from tests.data.samples import read_batches, write_shards
from tools import cache_features

# Of 24 x 8, 16 x 16 and 8 x 24 pixels.
BUCKETS = (
    "buckets.enabled=true",
    "buckets.aspects=[0.5,1.0,2.0]",
    "buckets.step=8",
    "model.size_conditioning=true",
)


def train_pattern(settings: Sequence[str], shards: str = "*") -> str:
    """The raw shards that settings name, or some of them."""
    pattern = load_config(None, settings).data.train[0]
    assert isinstance(pattern, str)
    return pattern.replace("*", shards)


def cache(output: Path, settings: list[str], *options: str, shards: str = "*") -> int:
    folder = Path(train_pattern(settings)).parent
    (output.parent / "empty.yaml").touch()
    command = [
        "--config",
        str(output.parent / "empty.yaml"),
        "--input",
        f"{folder}/shard-{shards}.tar",
        "--output",
        str(output),
        "--batch",
        "4",
    ]
    return cache_features.main([*command, *options, *settings])


def reader(config: Config, shards: str) -> Reader:
    return build_reader(config.data, [shards], model=config.model, seed=3, buckets=config.buckets)


def batches(reader: Reader, count: int) -> list[Batch]:
    batches = read_batches(reader, global_batch=4, micro_batch=4)
    return [next(batches) for _ in range(count)]


def shards(folder: Path, settings: list[str], replaced: dict[str, dict[str, bytes]]) -> list[str]:
    """Settings for shards of other samples."""
    folder.mkdir(exist_ok=True)
    write_shards(folder, [3, 2], replaced=replaced)
    plain = [setting for setting in settings if not setting.startswith("data.train")]
    return [*plain, f"data.train=[{folder}/shard-*.tar]"]
