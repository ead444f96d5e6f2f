"""Pictures as they are drawn, by one rank or many, to the store that the command line names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.sampling.batch import Request, generate_batches, latent_shape
from diffmoe_scale.sampling.cost import measure_cost
from diffmoe_scale.sampling.loading import Pipeline
from diffmoe_scale.sampling.loads import LoadByTime
from diffmoe_scale.sampling.metadata import picture_metadata
from diffmoe_scale.sampling.npz_file import NpzFile
from diffmoe_scale.sampling.picture_files import SUFFIXES, Metadata, PictureFormat, make_free_folder
from diffmoe_scale.sampling.ranks import Ranks
from diffmoe_scale.sampling.stores import PictureFolder, SingleFile, Store
from diffmoe_scale.sampling.thresholds import find_selection
from diffmoe_scale.telemetry.picture_grid import to_pixels

OTHER_SUFFIXES = (".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".jxl", ".ppm", ".svg", ".pdf", ".npy")
OutputFormat = Literal["png", "jpeg", "webp", "npz"]


@dataclass(frozen=True)
class Output:
    """Where pictures go: into a folder, with a grid; one picture into one file (`is_single`); or all into one
    array (`is_npz`).

    `path` is None for a name of the run's own.
    """

    path: Path | None
    kind: PictureFormat
    is_single: bool = False
    is_grid: bool = False
    is_npz: bool = False

    @property
    def is_file(self) -> bool:
        return self.is_single or self.is_grid or self.is_npz


def choose_output(path: Path | None, kind: OutputFormat | None, *, num_pictures: int) -> Output:
    """Raises: ValueError for a file that cannot hold what is drawn."""
    suffix = "" if path is None else path.suffix.lower()
    if suffix == ".npz" or kind == "npz":
        if path is None or path.is_dir() or suffix != ".npz" or kind not in (None, "npz"):
            where = "no --output" if path is None else f"--output {path}"
            raise ValueError(
                f"--format {kind or 'npz'} with {where}; expected a file --output NAME.npz for all pictures"
            )
        return Output(path, "png", is_npz=True)
    if path is None or path.is_dir() or suffix not in (*SUFFIXES, *OTHER_SUFFIXES):
        if path is not None and path.exists() and not path.is_dir():
            raise ValueError(f"--output {path} is a file; expected a folder, or a .png, .jpg or .webp file")
        return Output(path, kind or "png")
    if suffix in OTHER_SUFFIXES:
        raise ValueError(
            f"--output {path} is no kind of picture that is written; expected .png, .jpg, .webp or .npz"
        )
    if num_pictures > 1:
        if suffix != ".png":
            raise ValueError(
                f"--output {path} is one file for {num_pictures} pictures; expected a folder, a .png "
                "file for the grid of all, or a .npz file"
            )
        return Output(path, kind or "png", is_grid=True)
    if kind is not None and kind != SUFFIXES[suffix]:
        raise ValueError(f"--output {path} and --format {kind} differ; leave out one of them")
    return Output(path, SUFFIXES[suffix], is_single=True)


def write_pictures(
    pipeline: Pipeline, requests: Sequence[Request], output: Output, *, default: Path, columns: int
) -> list[str]:
    """Draw what is not there yet, and write; what was written, a line each, on the main rank. `default` is
    the folder where `output` names none. Collective over the pipeline's ranks.

    Raises: ValueError for pictures that are there and were drawn otherwise, OSError.
    """
    ranks = Ranks(pipeline.context)

    selection = find_selection(pipeline, pipeline.config.sampling)

    def describe(number: int) -> Metadata:
        return picture_metadata(pipeline, requests[number], selection)

    folder = ranks.of_main(lambda: _make_folder(output, default))
    store: Store
    if output.is_npz:
        store = _npz(pipeline, output, len(requests), describe)
    elif output.is_single:
        assert output.path is not None
        store = SingleFile(output.path, output.kind, describe)
    else:
        assert folder is not None
        grid = _grid_path(output, folder)
        store = PictureFolder(folder, output.kind, len(requests), describe, columns, grid)
    missing = ranks.of_main(store.missing)
    summary = _draw(pipeline, requests, selection, store, missing, ranks)
    lines = ranks.of_main(lambda: store.finish(drawn=len(missing), summary=summary))
    return lines if ranks.is_main else []


def _draw(
    pipeline: Pipeline,
    requests: Sequence[Request],
    selection: Selection,
    store: Store,
    missing: Sequence[int],
    ranks: Ranks,
) -> str:
    """Draw this rank's share of the missing pictures. What they cost, for all ranks. Collective."""
    sampling = pipeline.config.sampling
    share = ranks.share(missing)
    # A repeated picture is as good as any for a rank that has none left: it is not written.
    padded = [*share.places, *([missing[0]] * (share.count - len(share.places)) if missing else [])]
    loads, calls, drawn = LoadByTime(), 0.0, 0
    asked = [requests[number] for number in padded]
    for batch in generate_batches(
        pipeline.networks, asked, sampling, selection=selection, has_progress=ranks.is_main
    ):
        for pixels_HWC in to_pixels(batch.images_BCHW):
            if drawn < len(share.places):
                store.write(share.places[drawn], pixels_HWC)
            drawn += 1
        loads.merge(batch.loads)
        calls += batch.calls * len(batch.requests)
    everything = LoadByTime()
    parts = ranks.gather((loads.on_cpu(), calls, drawn))
    for part, _, _ in parts:
        everything.merge(part)
    count = max(1, sum(part[2] for part in parts))
    calls_a_picture = sum(part[1] for part in parts) / count
    cost = measure_cost(pipeline, sampling, everything, calls=calls_a_picture, num_pictures=count)
    asked_for = f" (sampling.capacity {sampling.capacity:g})" if sampling.capacity else ""
    return f"{cost}{asked_for}"


def _npz(pipeline: Pipeline, output: Output, count: int, describe: Callable[[int], Metadata]) -> NpzFile:
    assert output.path is not None
    _, height, width = latent_shape(pipeline.networks, pipeline.config.sampling)
    factor = pipeline.networks.autoencoder.factor
    return NpzFile(output.path, count, height * factor, width * factor, describe)


def _make_folder(output: Output, default: Path) -> Path | None:
    if output.path is None:
        return make_free_folder(default, beside=".png")
    if output.is_grid:
        return make_free_folder(output.path.with_suffix(""), beside=output.path.suffix)
    if not output.is_file:
        output.path.mkdir(parents=True, exist_ok=True)
        return output.path
    return None


def _grid_path(output: Output, folder: Path) -> Path | None:
    if output.path is None:
        return folder.with_name(f"{folder.name}.png")
    return folder.with_name(f"{folder.name}{output.path.suffix}") if output.is_grid else None
