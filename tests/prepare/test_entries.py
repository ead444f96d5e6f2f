import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from diffmoe_scale.prepare.entries import list_pictures
from diffmoe_scale.prepare.place import Columns
from diffmoe_scale.prepare.texts import read_known
from tests.data.samples import make_sample, write_shard


def find(source: Path) -> dict[str, tuple[bytes, list[str]]]:
    """Bytes and captions by name."""
    listing = list_pictures(source, Columns(tell=lambda line: None))
    return {entry.name: (entry.image.read(), read_known(entry).captions) for entry in listing.entries}


def picture(row: int) -> bytes:
    return make_sample(0, row)["png"]


def test_shards_of_img2dataset_are_read_from_their_tar_files(tmp_path: Path) -> None:
    for shard in range(2):
        metadata = json.dumps({"caption": "from json", "status": "success"}).encode()
        write_shard(
            tmp_path / f"{shard:05d}.tar",
            {f"{shard}{row}": {"jpg": picture(row), "txt": b"red", "json": metadata} for row in range(2)},
        )
        pyarrow.parquet.write_table(
            pyarrow.table({"url": ["x"], "caption": ["y"]}), tmp_path / f"{shard:05d}.parquet"
        )
        (tmp_path / f"{shard:05d}_stats.json").write_text("{}")
    found = find(tmp_path)
    assert found == {
        f"{shard:05d}/{shard}{row}.jpg": (picture(row), ["red"]) for shard in range(2) for row in range(2)
    }
    assert find(tmp_path / "00001.tar") == {f"1{row}.jpg": (picture(row), ["red"]) for row in range(2)}


def test_files_of_img2dataset_are_read_with_the_captions_beside_them(tmp_path: Path) -> None:
    (tmp_path / "00000").mkdir()
    (tmp_path / "00000" / "000000001.jpg").write_bytes(picture(1))
    (tmp_path / "00000" / "000000001.txt").write_text("red")
    pyarrow.parquet.write_table(pyarrow.table({"url": ["x"]}), tmp_path / "00000.parquet")
    assert find(tmp_path) == {"00000/000000001.jpg": (picture(1), ["red"])}


@pytest.mark.parametrize("column", [{"image": "photo"}, {"caption": "words"}])
def test_a_column_is_refused_where_there_is_no_table(column: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(0))
    (tmp_path / "a.txt").write_text("red")
    (name, value), *_ = column.items()
    sentence = f"--{name}-column is '{value}'; expected nothing: --input .* is no table"
    with pytest.raises(ValueError, match=sentence):
        list_pictures(tmp_path, Columns(**column, tell=lambda line: None))
