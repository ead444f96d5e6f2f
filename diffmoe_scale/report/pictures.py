"""The grids of pictures in RUN/samples, as sections of the report."""

import io
from pathlib import Path

from PIL import Image

from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.report.html import Markup, element, figure, join, missing

MAX_GRIDS = 8
MAX_IMAGE_BYTES = 1_500_000
MAX_IMAGE_WIDTH = 2000
EVALUATION_PREFIX = "evaluation-"


def samples_section(directory: RunDirectory, sample_command: str) -> Markup:
    """The newest grids of samples, or the command that draws some."""
    title = element("h2", "Samples")
    files = [path for path in _newest_first(directory.samples) if not _is_of_evaluation(path)]
    if not files:
        return join([title, missing("No samples yet. To draw some:", sample_command)])
    older = len(files) - MAX_GRIDS
    note = element("p", f"{older} older grids are in {directory.samples}.", kind="note")
    return join([title, *(picture(path) for path in files[:MAX_GRIDS]), *([note] if older > 0 else [])])


def evaluation_pictures(directory: RunDirectory) -> list[Markup]:
    """The grids that an evaluation left."""
    return [picture(path) for path in _newest_first(directory.samples) if _is_of_evaluation(path)]


def picture(path: Path) -> Markup:
    """A PNG as it is, or smaller as JPEG if it is a large file."""
    caption = path.name
    try:
        data, kind = path.read_bytes(), "png"
        if len(data) > MAX_IMAGE_BYTES:
            data, kind = _smaller(path), "jpeg"
    # Whatever a damaged or huge picture makes the decoder say.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, MemoryError) as error:
        return element("p", f"{caption} cannot be read: {error}", kind="missing")
    return figure(data, kind=kind, caption=caption)


def _smaller(path: Path) -> bytes:
    with Image.open(path, formats=["PNG"]) as image:
        smaller = image.convert("RGB")
    smaller.thumbnail((MAX_IMAGE_WIDTH, 10 * MAX_IMAGE_WIDTH), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    smaller.save(buffer, format="JPEG", quality=88)
    return buffer.getvalue()


def _is_of_evaluation(path: Path) -> bool:
    return path.name.startswith(EVALUATION_PREFIX)


def _newest_first(folder: Path) -> list[Path]:
    times = {}
    for path in folder.glob("*.png"):
        try:
            if path.is_file():
                times[path] = path.stat().st_mtime
        except OSError:  # removed in between
            continue
    return sorted(times, key=lambda path: (times[path], path.name), reverse=True)
