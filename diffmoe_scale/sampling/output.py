"""Pictures as they are drawn to single files, and the first of them to one captioned grid."""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffmoe_scale import __version__
from diffmoe_scale.sampling.batch import Request
from diffmoe_scale.sampling.generate import generate_batches
from diffmoe_scale.sampling.loading import Pipeline
from diffmoe_scale.sampling.loads import LoadByTime
from diffmoe_scale.sampling.picture_files import (
    SUFFIXES,
    Metadata,
    PictureFormat,
    encode_picture,
    file_stem,
    make_free_folder,
    write_free,
)
from diffmoe_scale.telemetry.picture_grid import save_image_grid, to_pixels

OTHER_SUFFIXES = (".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".jxl", ".ppm", ".svg", ".pdf")
MAX_GRID_PIXELS = 2**24
"""Of the pictures of a grid together: 256 of 256 x 256. More are drawn, but not shown in it."""
NUMBER = re.compile(r"(\d{5,12})[-.]")


@dataclass(frozen=True)
class Output:
    """Where pictures go: into a folder, with a grid; or one picture into one file (`is_single`).

    `path` is None for a name of the run's own.
    """

    path: Path | None
    kind: PictureFormat
    is_single: bool = False
    is_grid: bool = False


def choose_output(path: Path | None, kind: PictureFormat | None, *, num_pictures: int) -> Output:
    """Raises: ValueError for a file that cannot hold what is drawn."""
    suffix = "" if path is None else path.suffix.lower()
    if path is None or path.is_dir() or suffix not in (*SUFFIXES, *OTHER_SUFFIXES):
        if path is not None and path.exists() and not path.is_dir():
            raise ValueError(f"--output {path} is a file; expected a folder, or a .png, .jpg or .webp file")
        return Output(path, kind or "png")
    if suffix in OTHER_SUFFIXES:
        raise ValueError(
            f"--output {path} is no kind of picture that is written; expected .png, .jpg or .webp"
        )
    if num_pictures > 1:
        if suffix != ".png":
            raise ValueError(
                f"--output {path} is one file for {num_pictures} pictures; expected a folder, or a .png "
                "file for the grid of all"
            )
        return Output(path, kind or "png", is_grid=True)
    if kind is not None and kind != SUFFIXES[suffix]:
        raise ValueError(f"--output {path} and --format {kind} differ; leave out one of them")
    return Output(path, SUFFIXES[suffix], is_single=True)


def write_pictures(
    pipeline: Pipeline, requests: Sequence[Request], output: Output, *, default: Path, columns: int
) -> list[str]:
    """Draw and write; what was written, a line each. `default` is the folder where `output` names none.

    Raises: OSError.
    """
    if output.is_single:
        return [_write_one(pipeline, requests[0], output)]
    folder = _make_folder(output, default)
    numbers = itertools.count(_first_number(folder))
    loads, shown = LoadByTime(), _Shown(columns)
    for batch in generate_batches(pipeline.networks, requests, pipeline.config.sampling):
        for request, pixels_HWC in zip(batch.requests, to_pixels(batch.images_BCHW), strict=True):
            data = encode_picture(pixels_HWC, output.kind, _metadata(pipeline, request))
            write_free(folder, file_stem(next(numbers), request.prompt), _suffix(output.kind), data)
        shown.add(batch.images_BCHW)
        loads.merge(batch.loads)
    grid = _grid_path(output, folder)
    captions = [str(request.prompt) for request in requests[: shown.count]]
    save_image_grid(torch.cat(shown.images), captions, grid, columns=columns)
    count = f"{len(requests)} picture{'s' * (len(requests) > 1)}"
    rest = f" (the first {shown.count} shown)" if shown.count < len(requests) else ""
    capacity = f"average inference capacity {loads.capacity:.3f}"
    return [f"{folder}: {count}", f"{grid}: {count}{rest}, {capacity}"]


def _write_one(pipeline: Pipeline, request: Request, output: Output) -> str:
    assert output.path is not None
    output.path.parent.mkdir(parents=True, exist_ok=True)
    (batch,) = generate_batches(pipeline.networks, [request], pipeline.config.sampling)
    data = encode_picture(to_pixels(batch.images_BCHW)[0], output.kind, _metadata(pipeline, request))
    path = write_free(output.path.parent, output.path.stem, output.path.suffix, data)
    return f"{path}: 1 picture, average inference capacity {batch.loads.capacity:.3f}"


class _Shown:
    """The first pictures, as many as fit in a grid, but at least a row."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.images: list[Tensor] = []
        self.count = 0

    def add(self, images_BCHW: Tensor) -> None:
        pixels = images_BCHW.shape[2] * images_BCHW.shape[3]
        free = max(self.columns, MAX_GRID_PIXELS // pixels) - self.count
        if free > 0:
            self.images.append(images_BCHW[:free].float().cpu())
            self.count += len(self.images[-1])


def _make_folder(output: Output, default: Path) -> Path:
    if output.path is None:
        return make_free_folder(default, beside=".png")
    if output.is_grid:
        return make_free_folder(output.path.with_suffix(""), beside=output.path.suffix)
    output.path.mkdir(parents=True, exist_ok=True)
    return output.path


def _grid_path(output: Output, folder: Path) -> Path:
    if output.path is None:
        return folder.with_name(f"{folder.name}.png")
    if output.is_grid:
        return folder.with_name(f"{folder.name}{output.path.suffix}")
    return write_free(folder, "grid", ".png", b"")  # the name is ours from now on


def _first_number(folder: Path) -> int:
    """Behind the pictures that the folder holds from before."""
    taken = [int(match[1]) for path in folder.iterdir() if (match := NUMBER.match(path.name))]
    return max(taken, default=-1) + 1


def _suffix(kind: PictureFormat) -> str:
    return ".jpg" if kind == "jpeg" else f".{kind}"


def _metadata(pipeline: Pipeline, request: Request) -> Metadata:
    return {
        "prompt": str(request.prompt),
        "negative_prompt": request.negative_prompt,
        "seed": request.seed,
        "index": request.index,
        "settings": json.dumps(asdict(pipeline.config.sampling)),
        "checkpoint": str(pipeline.checkpoint),
        "step": pipeline.step,
        "weights": pipeline.weights,
        "version": f"diffmoe_scale {__version__}",
    }
