import datetime
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from diffmoe_scale.prepare.entries import list_pictures
from diffmoe_scale.prepare.parquet import CellPlace
from diffmoe_scale.prepare.place import Columns
from diffmoe_scale.prepare.texts import read_known
from tests.data.samples import make_sample
from tests.prepare.folders import prepare, read_captions


def find(source: Path) -> dict[str, tuple[bytes, list[str]]]:
    """Bytes and captions by name."""
    listing = list_pictures(source, Columns(tell=lambda line: None))
    return {entry.name: (entry.image.read(), read_known(entry).captions) for entry in listing.entries}


def picture(row: int) -> bytes:
    return make_sample(0, row)["png"]


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
    assert find(tmp_path) == {f"00000/k{row}": (picture(row), ["abcde"[row]]) for row in range(5)}


def test_a_parquet_table_may_name_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(0))
    pyarrow.parquet.write_table(
        pyarrow.table({"file_name": ["a.png"], "text": ["red"]}), tmp_path / "t.parquet"
    )
    assert find(tmp_path / "t.parquet") == {"a.png": (picture(0), ["red"])}


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


def test_columns_with_a_dictionary_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(0))
    names = pyarrow.array(["a.png", "a.png"]).dictionary_encode()
    captions = pyarrow.array(["red", "red"]).dictionary_encode()
    pyarrow.parquet.write_table(pyarrow.table({"file_name": names, "text": captions}), tmp_path / "t.parquet")
    prepare(tmp_path / "t.parquet", tmp_path / "out")
    assert read_captions(tmp_path / "out") == {"a": "red", "a-2": "red"}


def test_columns_of_one_name_and_of_other_kinds_are_refused(tmp_path: Path) -> None:
    table = pyarrow.table([["a"], ["b"], ["c"]], names=["image", "caption", "caption"])
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"t\.parquet has the columns caption twice"):
        find(tmp_path / "t.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"image": [1], "caption": ["b"]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="values of the type int64 in the column image"):
        find(tmp_path / "t.parquet")


@pytest.mark.parametrize("is_folder", [False, True])
@pytest.mark.parametrize("column", [0, 1])
def test_a_damaged_page_costs_its_row_group_and_is_named(
    tmp_path: Path, column: int, is_folder: bool
) -> None:
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / "b.parquet"
    table = pyarrow.table({"jpg": [picture(row) for row in range(6)], "caption": list("abcdef")})
    pyarrow.parquet.write_table(table, path, row_group_size=2)
    chunk = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(column)
    place, data = chunk.dictionary_page_offset or chunk.data_page_offset, bytearray(path.read_bytes())
    data[place : place + 8] = b"\xff" * 8
    path.write_bytes(data)
    prepared = prepare(path.parent if is_folder else path, tmp_path / "out")
    assert set(read_captions(tmp_path / "out").values()) == {"a", "b", "e", "f"}
    losses = prepared.unused if column else prepared.left_out
    assert losses.counts.total() == 2
    printed = "\n".join(prepared.lines())
    assert "b.parquet" in printed and "row group 1" in printed


def test_texts_in_cells_that_are_no_utf8_are_read(tmp_path: Path) -> None:
    captions = pyarrow.array(["caf\u00e9".encode("cp1252"), b"x"], pyarrow.binary())
    table = pyarrow.table({"jpg": [picture(0), picture(1)], "caption": captions})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    prepared = prepare(tmp_path / "t.parquet", tmp_path / "out")
    assert set(read_captions(tmp_path / "out").values()) == {"caf\u00e9", "x"}
    assert prepared.notes.counts.total() == 1


def test_a_damaged_file_of_several_is_named_and_the_others_read(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    table = pyarrow.table({"jpg": [picture(0)], "caption": ["x"]})
    pyarrow.parquet.write_table(table, tmp_path / "set" / "0.parquet")
    (tmp_path / "set" / "1.parquet").write_bytes((tmp_path / "set" / "0.parquet").read_bytes()[:100])
    prepared = prepare(tmp_path / "set", tmp_path / "out")
    assert prepared.unused.names == {
        "parquet file that cannot be read": ["1.parquet: it is no parquet file, or cut off"]
    }


def test_values_of_columns_are_kept_as_json_can_hold_them(tmp_path: Path) -> None:
    columns = {
        "jpg": [picture(0)],
        "caption": ["red"],
        "day": [datetime.date(2026, 1, 2)],
        "price": [Decimal("1.50")],
        "tags": [["a", "b"]],
        "place": [{"city": "x"}],
        "score": [float("nan")],
        "raw": [b"\x00" * (1 << 21)],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    (entry,) = list_pictures(tmp_path / "t.parquet", Columns(tell=lambda line: None)).entries
    kept = {"day": "2026-01-02", "price": "1.50", "tags": ["a", "b"], "place": {"city": "x"}}
    assert entry.record == kept | {"caption": "red"}


def test_threads_read_a_row_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"jpg": [picture(0)] * 16}), tmp_path / "t.parquet")
    read, calls = pyarrow.parquet.ParquetFile.read_row_group, []

    def counted(self: pyarrow.parquet.ParquetFile, *args: object, **options: object) -> pyarrow.Table:
        calls.append(args)
        time.sleep(0.05)  # the others ask meanwhile
        return read(self, *args, **options)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read_row_group", counted)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda row: CellPlace(tmp_path / "t.parquet", 0, "jpg", row).read(), range(16)))
    assert found == [picture(0)] * 16 and len(calls) == 1
