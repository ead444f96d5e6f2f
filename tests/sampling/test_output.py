"""Drawings that are stopped go on, with the same settings alone, in folders and in one array."""

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any  # settings of any type are passed on

import numpy as np
import pytest
from PIL import Image

from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.sampling.batch import number_requests
from diffmoe_scale.sampling.loading import Pipeline
from diffmoe_scale.sampling.output import OutputFormat, choose_output, write_pictures
from diffmoe_scale.sampling.picture_files import read_picture_metadata
from diffmoe_scale.sampling.stores import PictureFolder
from tests.sampling.models import PLAIN, SIZE, build, config

LABELS: list[str | int] = [0, 1, 2, 0, 1]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    settings = config(sampling=replace(PLAIN, batch=2))
    return Pipeline(build(settings), settings, RunDirectory(Path("unused")), Path("unused"), 7)


def draw(
    pipeline: Pipeline,
    path: Path,
    *,
    labels: list[str | int] | None = None,
    kind: OutputFormat | None = None,
    seed: int = 3,
    **settings: Any,
) -> list[str]:
    changed = replace(pipeline.config, sampling=replace(pipeline.config.sampling, **settings))
    requests = number_requests(LABELS if labels is None else labels, seed=seed)
    output = choose_output(path, kind, num_pictures=len(requests))
    return write_pictures(replace(pipeline, config=changed), requests, output, default=path, columns=2)


def numbered(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("0*"))}


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_folder_is_gone_on_with_where_it_was_stopped(
    pipeline: Pipeline, tmp_path: Path, kind: OutputFormat
) -> None:
    lines = draw(pipeline, tmp_path / "x", kind=kind)
    whole = numbered(tmp_path / "x")
    assert len(whole) == 5 and lines[0] == f"{tmp_path / 'x'}: 5 pictures"
    assert ", 4 network calls a picture, " in lines[1] and lines[1].endswith(" MFLOP a picture")
    times = {name: (tmp_path / "x" / name).stat().st_mtime_ns for name in whole}
    for name in list(whole)[1:4:2]:
        (tmp_path / "x" / name).unlink()
    # Other batches are no other pictures.
    lines = draw(pipeline, tmp_path / "x", kind=kind, batch=64)
    assert lines[0] == f"{tmp_path / 'x'}: 5 pictures, 3 of them from before"
    assert {name: len(data) for name, data in numbered(tmp_path / "x").items()}.keys() == whole.keys()
    kept = [name for name in whole if (tmp_path / "x" / name).stat().st_mtime_ns == times[name]]
    assert kept == list(whole)[::2]
    again = draw(pipeline, tmp_path / "x", kind=kind)
    assert again == [f"{tmp_path / 'x'}: 5 pictures, all of them from before: nothing was drawn"]


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"steps": 5}, "sampling.steps 4 instead of 5"),
        ({"guidance": 2.0}, "sampling.guidance 1.0 instead of 2.0"),
        ({"seed": 4}, "seed '3' instead of 4"),
        ({"labels": [1, 1]}, "prompt '0' instead of '1'"),
        ({"labels": [0], "steps": 6}, "sampling.steps 4 instead of 6"),
        ({"kind": "jpeg"}, "the name 00000-0.png instead of 00000-0.jpg"),
    ],
)
def test_pictures_that_were_drawn_otherwise_are_refused(
    pipeline: Pipeline, tmp_path: Path, changed: dict[str, Any], difference: str
) -> None:
    draw(pipeline, tmp_path / "x", labels=[0, 1])
    before = numbered(tmp_path / "x")
    with pytest.raises(ValueError) as refused:
        draw(pipeline, tmp_path / "x", **({"labels": [0, 1]} | changed))
    assert difference in str(refused.value) and "choose another --output" in str(refused.value)
    assert numbered(tmp_path / "x") == before


def test_pictures_of_another_checkpoint_or_of_others_are_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    draw(pipeline, tmp_path, labels=[0])
    with pytest.raises(ValueError, match=r"drawn with step '7' instead of 8"):
        draw(replace(pipeline, step=8), tmp_path, labels=[0])
    Image.new("RGB", (8, 8)).save(tmp_path / "00000-0.png")
    with pytest.raises(ValueError, match=r"00000-0\.png was drawn with no word of how it was made"):
        draw(pipeline, tmp_path, labels=[0])
    (tmp_path / "00000-0.png").write_bytes(b"half a picture")
    with pytest.raises(ValueError, match=r"cannot be read as a picture .*; remove it to go on"):
        draw(pipeline, tmp_path, labels=[0])


def test_a_picture_that_another_process_writes_meanwhile_is_not_replaced(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    draw(pipeline, tmp_path, labels=[0])
    store = PictureFolder(tmp_path, "png", 1, lambda number: {"prompt": "0"}, 1)
    with pytest.raises(RunError, match=r"was written by another process"):
        store.write(0, np.zeros((8, 8, 3), np.uint8))


def test_an_array_has_the_layout_of_adm_and_says_how_it_was_made(pipeline: Pipeline, tmp_path: Path) -> None:
    lines = draw(pipeline, tmp_path / "x.npz")
    assert lines == [
        f"{tmp_path / 'x.npz'}: 5 pictures, {lines[0].split('pictures, ')[1]}",
    ]
    draw(pipeline, tmp_path / "folder")
    with np.load(tmp_path / "x.npz") as archive:
        pixels = archive["arr_0"]
        common, *pictures = [json.loads(line) for line in archive["metadata.jsonl"].splitlines()]
    assert pixels.dtype == np.uint8 and pixels.shape == (5, SIZE, SIZE, 3) and pixels.flags.c_contiguous
    for number, path in enumerate(sorted((tmp_path / "folder").glob("0*"))):
        with Image.open(path) as picture:
            assert np.array_equal(np.asarray(picture), pixels[number])
        single = {name: str(value) for name, value in (common | pictures[number]).items()}
        assert single.items() >= read_picture_metadata(path).items()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "x.npz"]
    assert "nothing was drawn" in draw(pipeline, tmp_path / "x.npz")[0]
    with pytest.raises(ValueError, match=r"picture 0 was drawn with sampling\.steps 4 instead of 9"):
        draw(pipeline, tmp_path / "x.npz", steps=9)
    with pytest.raises(ValueError, match=r"is of 5 of 8 x 8 pictures instead of 2 of 8 x 8"):
        draw(pipeline, tmp_path / "x.npz", labels=[0, 1])


def test_an_array_is_gone_on_with_where_it_was_stopped(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(pipeline, tmp_path / "whole.npz")
    from diffmoe_scale.sampling import output as module

    def stop_after_two(*arguments: Any, **options: Any) -> Any:
        yield from [next(iter(batches(*arguments, **options)))]
        raise KeyboardInterrupt

    batches = module.generate_batches
    monkeypatch.setattr(module, "generate_batches", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        draw(pipeline, tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()
    monkeypatch.setattr(module, "generate_batches", batches)
    with pytest.raises(ValueError, match=r"sampling\.steps 4 instead of 9; give the same settings"):
        draw(pipeline, tmp_path / "x.npz", steps=9)
    (line,) = draw(pipeline, tmp_path / "x.npz")
    assert "5 pictures, 2 of them from before" in line
    with np.load(tmp_path / "x.npz") as found, np.load(tmp_path / "whole.npz") as whole:
        # The other batches round otherwise.
        assert np.abs(found["arr_0"].astype(int) - whole["arr_0"]).max() <= 1


@pytest.mark.parametrize("data", [b"", b"no archive", None])
def test_an_array_of_others_is_refused(pipeline: Pipeline, tmp_path: Path, data: bytes | None) -> None:
    if data is None:
        buffer = io.BytesIO()
        np.savez(buffer, arr_0=np.zeros((5, 8, 8, 3), np.uint8))
        data = buffer.getvalue()
        assert zipfile.is_zipfile(io.BytesIO(data))
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.npz says nothing of how it was drawn; choose another"):
        draw(pipeline, tmp_path / "x.npz")
    assert (tmp_path / "x.npz").read_bytes() == data


@pytest.mark.parametrize(
    ("name", "kind"), [("x.png", "npz"), ("folder", "npz"), (None, "npz"), ("x.npz", "jpeg")]
)
def test_an_array_needs_a_file_of_its_own(name: str | None, kind: OutputFormat, tmp_path: Path) -> None:
    path = None if name is None else tmp_path / name
    with pytest.raises(ValueError, match=r"expected a file --output NAME\.npz for all pictures"):
        choose_output(path, kind, num_pictures=2)
