"""A sidecar is a cache: whatever happened to it, the samples are those of a fresh scan."""

import io
import logging
import os
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffmoe_scale.data.order.size import SIDECAR, find_sizes
from diffmoe_scale.data.shards.catalog import ShardCatalog
from diffmoe_scale.data.shards.index import scan_shard
from diffmoe_scale.data.shards.patterns import INDEX_SUFFIX
from diffmoe_scale.data.shards.sidecar import read_arrays, read_index, stamp_of, write_arrays, write_index
from tests.data.samples import encode, write_shards

COUNTS = [4, 4, 3]
CASES_OF_A_KIND = 30


def _beside(path: Path, kind: str = "") -> Path:
    return path.with_name(f"{path.name}{kind}{INDEX_SUFFIX}")


def _shards(folder: Path) -> list[Path]:
    replaced = {
        "0_1": {"png": encode(Image.new("RGB", (8, 4))), "txt": b"wide"},
        "1_2": {"png": encode(Image.new("RGB", (4, 16))), "json": b"{}"},
        "2_2": {"txt": b"alone"},
    }
    return write_shards(folder, COUNTS, replaced=replaced)


def _content(paths: list[Path]) -> list[object]:
    """All that a catalog and the sizes say."""
    catalog = ShardCatalog(paths)
    samples: list[object] = [catalog.counts, dict(catalog.problems), catalog.sizes]
    for shard, count in enumerate(catalog.counts):
        index = catalog.index(shard)
        samples += [(index.key(row), index.members(row)) for row in range(count)]
        samples.append(find_sizes(catalog, shard, has_features=False)[0].tolist())
    return samples


def _other_archive(draw: random.Random) -> bytes:
    buffer = io.BytesIO()
    if draw.random() < 0.5:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("header.npy", bytes(1 << 20))
        return buffer.getvalue()
    np.savez(buffer, header=np.frombuffer(b'{"format": 3}', np.uint8), keys=np.zeros((2, 3)))
    return buffer.getvalue()


def _damage(kind: str, data: bytes, other: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(data))
    end = min(len(data), place + draw.randrange(1, 200))
    match kind:
        case "flip":
            return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]
        case "truncate":
            return data[:place]
        case "zero":
            return data[:place] + bytes(end - place) + data[end:]
        case "extend":
            return data + draw.randbytes(draw.randrange(1, 100))
        case "swap":
            return other
        case "splice":
            return data[:place] + other[place:]
        case "remove":
            return data[:place] + data[end:]
        case _:
            return _other_archive(draw)


KINDS = ("flip", "truncate", "zero", "extend", "swap", "splice", "remove", "archive")


@pytest.mark.slow
@pytest.mark.parametrize("damage", KINDS)
def test_whatever_happens_to_a_sidecar_the_samples_are_those_of_a_scan(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    paths = _shards(tmp_path)
    expected = _content(paths)
    places = [_beside(path, kind) for path in paths for kind in ("", SIDECAR)]
    good = {place: place.read_bytes() for place in places}
    draw = random.Random(damage)
    for case in range(CASES_OF_A_KIND):
        place, other = places[case % len(places)], places[(case + 2) % len(places)]
        place.write_bytes(_damage(damage, good[place], good[other], draw))
        assert _content(paths) == expected, case
        assert place.read_bytes() == good[place], "it is made anew"


def test_any_flipped_bit_is_found(tmp_path: Path) -> None:
    place = tmp_path / "a"
    write_arrays(place, {"format": 1}, {"numbers": np.arange(3)})
    data = place.read_bytes()
    assert read_arrays(place, {"format": 1}) is not None
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        place.write_bytes(flipped)
        assert read_arrays(place, {"format": 1}) is None, bit


BROKEN = {
    "keys": np.arange(4),
    "first_member": np.array([0, 2, 2, 6, 8]),
    "suffix": np.array([0, 1, 2, 1, 0, 1, 0, 1], np.int32),
    "offset": np.array([-512, 0, 0, 0, 0, 0, 0, 0]),
    "size": np.full(8, 2**62),
}


@pytest.mark.parametrize("name", [*BROKEN, *(f"short {name}" for name in BROKEN)])
def test_an_index_whose_arrays_lead_astray_is_none(tmp_path: Path, name: str) -> None:
    (path,) = write_shards(tmp_path, [4])
    index, place = scan_shard(path), tmp_path / "index"
    array = name.removeprefix("short ")
    value = BROKEN[name] if name in BROKEN else getattr(index, array)[:-1]
    write_index(index, path, [place], stamp_of(path))
    assert read_index(place, stamp_of(path)) is not None
    object.__setattr__(index, array, value)
    write_index(index, path, [place], stamp_of(path))
    assert read_index(place, stamp_of(path)) is None


@pytest.mark.parametrize("header", [[], {}, {"suffixes": ["png"]}, {"suffixes": 3, "problems": [{}]}])
def test_a_header_of_another_shape_is_none(tmp_path: Path, header: dict[str, object]) -> None:
    (path,) = write_shards(tmp_path, [1])
    place, stamp = tmp_path / "index", stamp_of(path)
    write_arrays(place, stamp | header if isinstance(header, dict) else header, {})
    assert read_index(place, stamp) is None


def test_sidecars_of_shards_that_differ_in_name_alone_are_not_taken_for_each_other(tmp_path: Path) -> None:
    first, second = write_shards(tmp_path, [2, 2])
    for path in (first, second):
        os.utime(path, ns=(0, 0))
    expected = _content([first, second])
    data = [_beside(path).read_bytes() for path in (first, second)]
    _beside(first).write_bytes(data[1])
    _beside(second).write_bytes(data[0])
    assert _content([first, second]) == expected


def test_sizes_of_pictures_that_were_replaced_by_others_as_long_are_read_anew(tmp_path: Path) -> None:
    for size in ((2, 8), (8, 2)):
        picture = {"bmp": encode(Image.new("RGB", size), "BMP").ljust(300, b"\0"), "txt": b"a"}
        (path,) = write_shards(tmp_path, [1], replaced={"0_0": picture})
        catalog = ShardCatalog([path])
        assert find_sizes(catalog, 0, has_features=False)[0].tolist() == [[size[1], size[0]]]


@pytest.mark.parametrize(
    "sizes", [np.ones((3, 2), np.uint32), np.ones((4, 2)), np.ones((4, 3), np.uint32), np.ones(4, np.uint32)]
)
def test_sizes_of_another_shape_are_read_anew(tmp_path: Path, sizes: np.ndarray) -> None:
    (path,) = write_shards(tmp_path, [4])
    catalog = ShardCatalog([path])
    expected = find_sizes(catalog, 0, has_features=False)[0].tolist()
    place = _beside(path, SIDECAR)
    found = read_arrays(place, catalog.stamp(0))
    assert found is not None
    write_arrays(place, found[0], {"sizes": sizes})
    assert find_sizes(catalog, 0, has_features=False)[0].tolist() == expected
