import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from diffmoe_scale.prepare.entries import Entry, find_entries
from tests.data.samples import make_sample, write_shard


def find(source: Path) -> dict[str, tuple[bytes, object]]:
    """Bytes and caption by name."""
    entries: list[Entry] = find_entries(source, image_column="", caption_column="")
    return {entry.name: (entry.image.read(), entry.read_record().get("caption")) for entry in entries}


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
        f"{shard:05d}/{shard}{row}.jpg": (picture(row), "red") for shard in range(2) for row in range(2)
    }
    assert find(tmp_path / "00001.tar") == {f"1{row}.jpg": (picture(row), "red") for row in range(2)}


def test_files_of_img2dataset_are_read_with_the_captions_beside_them(tmp_path: Path) -> None:
    (tmp_path / "00000").mkdir()
    (tmp_path / "00000" / "000000001.jpg").write_bytes(picture(1))
    (tmp_path / "00000" / "000000001.txt").write_text("red")
    pyarrow.parquet.write_table(pyarrow.table({"url": ["x"]}), tmp_path / "00000.parquet")
    assert find(tmp_path) == {"00000/000000001.jpg": (picture(1), "red")}


@pytest.mark.parametrize("is_struct", [False, True])
def test_pictures_in_parquet_files_stay_there_until_they_are_read(tmp_path: Path, is_struct: bool) -> None:
    pictures = [picture(row) for row in range(5)]
    cells = [{"bytes": data, "path": "x"} for data in pictures] if is_struct else pictures
    table = pyarrow.table(
        {
            "key": [f"k{row}" for row in range(5)],
            "image" if is_struct else "jpg": cells,
            "caption": list("abcde"),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "00000.parquet", row_group_size=2)
    assert find(tmp_path) == {f"00000/k{row}": (picture(row), "abcde"[row]) for row in range(5)}


def test_a_parquet_table_may_name_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(0))
    pyarrow.parquet.write_table(
        pyarrow.table({"file_name": ["a.png"], "text": ["red"]}), tmp_path / "t.parquet"
    )
    assert find(tmp_path / "t.parquet") == {"a.png": (picture(0), "red")}


def test_a_cell_without_a_picture_is_an_error_that_names_it(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(
        pyarrow.table({"jpg": [picture(0), None], "caption": ["a", "b"]}), tmp_path / "t.parquet"
    )
    with pytest.raises(OSError, match=r"row 1 of row group 0 of .* has no bytes in the column jpg"):
        find(tmp_path / "t.parquet")


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"t\.parquet cannot be read"):
        find(tmp_path / "t.parquet")
