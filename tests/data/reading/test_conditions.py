import json
from pathlib import Path

import pytest

from diffmoe_scale.config.data import DataConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.data.reading.build import build_reader
from diffmoe_scale.data.reading.conditions import CHECKED_SAMPLES
from diffmoe_scale.data.reading.reader import Reader
from tests.data.reading.readers import make_reader
from tests.data.samples import make_sample, write_shards


def read(folder: Path, records: list[dict[str, object]], weights: dict[str, float] | None) -> Reader:
    """A reader of a shard whose samples have these records and a .txt."""
    replaced = {
        f"0_{row}": make_sample(0, row) | {"json": json.dumps(record).encode()}
        for row, record in enumerate(records)
    }
    write_shards(folder, [len(records)], replaced=replaced)
    config = DataConfig() if weights is None else DataConfig(caption_weights=weights)
    return build_reader(config, [f"{folder}/*.tar"], model=ModelConfig(image_size=4), seed=0)


@pytest.mark.parametrize("weights", [None, {"txt": 1.0, "caption": 0.0}, {"txt": 0.5, "long": 0.5}])
def test_sources_that_some_sample_has_are_good(tmp_path: Path, weights: dict[str, float] | None) -> None:
    records: list[dict[str, object]] = [{} for _ in range(99)] + [{"long": ["a", "b"]}]
    assert read(tmp_path, records, weights).num_samples == 100


@pytest.mark.parametrize(
    ("weights", "missing"),
    [
        ({"txt": 0.5, "longg": 0.5}, "the field 'longg' of its .json"),
        ({"txt": 1.0, "longg": 0.0}, "the field 'longg' of its .json"),
        ({"txt": 1.0, "caption": 1.0}, "the field 'caption' of its .json"),
        ({"txt": 1.0, "number": 1.0}, "the field 'number' of its .json"),
    ],
)
def test_a_source_that_no_sample_has_is_refused(
    tmp_path: Path, weights: dict[str, float], missing: str
) -> None:
    with pytest.raises(ValueError) as raised:
        read(tmp_path, [{"long": "x", "number": 5}, {"caption": " "}], weights)
    assert missing in str(raised.value) and "data.caption_weights names" in str(raised.value)


def test_shards_without_any_caption_are_an_error(tmp_path: Path) -> None:
    replaced = {f"0_{row}": {"png": make_sample(0, row)["png"], "cls": b"1"} for row in range(5)}
    with pytest.raises(
        ValueError, match=r"none of 5 samples.*its \.txt or the field 'caption' of its \.json.*'cls': 5"
    ):
        make_reader(tmp_path, [5], replaced=replaced)


def test_shards_without_any_label_are_an_error_for_classes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none of 5 samples.*\.cls.*'txt': 5"):
        make_reader(tmp_path, [5], num_classes=10)


def test_one_caption_in_the_last_shard_is_found(tmp_path: Path) -> None:
    counts = [CHECKED_SAMPLES // 8] * 8
    replaced = {
        f"{shard}_{row}": {"png": make_sample(shard, row)["png"]}
        for shard in range(8)
        for row in range(counts[shard])
        if (shard, row) != (7, counts[7] - 1)
    }
    assert make_reader(tmp_path, counts, replaced=replaced).num_samples == CHECKED_SAMPLES
