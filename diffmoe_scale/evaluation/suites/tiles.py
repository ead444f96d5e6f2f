"""Pictures of one prompt as the tiles of one picture, two by two."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from PIL import Image

from diffmoe_scale.evaluation.suites.suite import Suite, SuitePrompt
from diffmoe_scale.files import replace_file

TILES = 4


def write_tiles(suite: Suite, folder: Path, file_of: Callable[[SuitePrompt], str]) -> None:
    """A file for each prompt, row by row; a tile without a picture is black. One that is newer than its
    pictures stays. Raises: OSError, ValueError for a picture that cannot be read."""
    for number, prompt in enumerate(suite.prompts):
        tiles = [folder / suite.file_of(number * suite.copies + copy) for copy in range(suite.copies)]
        path = folder / file_of(prompt)
        if path.is_file() and path.stat().st_mtime_ns > max(tile.stat().st_mtime_ns for tile in tiles):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures = [_open(tile) for tile in tiles]
        width, height = pictures[0].size
        canvas = pictures[0]
        if suite.copies > 1:
            canvas = Image.new("RGB", (2 * width, 2 * height))
            for copy, picture in enumerate(pictures):
                canvas.paste(picture, (copy % 2 * width, copy // 2 * height))
        data = BytesIO()
        options = {"lossless": True} if path.suffix == ".webp" else {}
        canvas.save(data, path.suffix.removeprefix(".").upper(), **options)
        replace_file(path, data.getvalue())


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as a picture ({error}); remove it and run again") from error
