"""Archives with random damage: a sentence with the file's name, never another error."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from diffmoe_scale.evaluation.metrics.adm_statistics import read_adm_statistics
from diffmoe_scale.evaluation.metrics.pictures import open_pictures
from diffmoe_scale.evaluation.metrics.reference import reference_size

CASES = 400
PICTURES = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
WIDTH = 3


def archive(path: Path, *, is_compressed: bool) -> bytes:
    buffer = io.BytesIO()
    save = np.savez_compressed if is_compressed else np.savez
    save(buffer, arr_0=PICTURES, mu=np.ones(WIDTH), sigma=np.eye(WIDTH))
    with zipfile.ZipFile(buffer, "a") as whole:
        lines = [{"count": 5}, *({"prompt": f"picture {number}"} for number in range(5))]
        whole.writestr("metadata.jsonl", "\n".join(json.dumps(line) for line in lines))
    return buffer.getvalue()


def damage(data: bytes, random: np.random.Generator) -> bytes:
    changed = bytearray(data)
    match random.integers(3):
        case 0:
            return bytes(changed[: random.integers(len(data))])
        case 1:
            first = random.integers(len(data))
            del changed[first : first + random.integers(1, 40)]
        case _:
            for _ in range(random.integers(1, 6)):
                changed[random.integers(len(data))] = random.integers(256)
    return bytes(changed)


@pytest.mark.slow
@pytest.mark.parametrize("is_compressed", [False, True])
def test_damage_is_a_sentence_with_the_files_name(tmp_path, is_compressed):
    path, random = tmp_path / "reference.npz", np.random.default_rng(is_compressed)
    data, refused = archive(path, is_compressed=is_compressed), 0
    for _ in range(CASES):
        path.write_bytes(damage(data, random))
        for read in (_read_pictures, _read_statistics, reference_size):
            try:
                read(path)
            except ValueError as error:
                refused += 1
                assert str(path) in str(error), repr(error)
                assert "\n" not in str(error)
    assert refused > CASES


def _read_pictures(path: Path) -> None:
    for _ in open_pictures(path).batches(2):
        pass


def _read_statistics(path: Path) -> None:
    read_adm_statistics(path, {"moments": WIDTH})
