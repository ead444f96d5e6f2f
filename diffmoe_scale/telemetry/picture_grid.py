"""Grids of pictures with their captions, as PNG files. Matplotlib finds the fonts."""

import functools
import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib import get_data_path
from matplotlib.font_manager import fontManager
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from diffmoe_scale.files import replace_file

GRID_COLUMNS = 8
"""Of the grids that a run writes."""
INK, GOOD, BAD = "#1f2933", "#0b7a5b", "#c92a2a"
MIN_CELL = 128
"""Pixels of width below which pictures are enlarged."""
CAPTION_SIZE = 13
CAPTION_LINES = 3
LINE_HEIGHT = round(1.3 * CAPTION_SIZE)
MAX_LETTERS = 2000
"""Letters of a caption that are looked at: more never fit into its lines."""
MARGIN = 10


def save_image_grid(
    images_BCHW: torch.Tensor,
    captions: Sequence[str],
    path: Path,
    columns: int,
    passed: Sequence[bool] | None = None,
) -> None:
    """Write images in [-1, 1] with their captions below as one PNG; `passed` marks each as right or wrong.

    Small images are enlarged by a whole factor without interpolation. The file is replaced at once, never
    half written.
    """
    assert len(images_BCHW) == len(captions) > 0, f"{len(images_BCHW)} images with {len(captions)} captions"
    assert passed is None or len(passed) == len(captions), (
        f"{len(captions)} images with {len(passed or ())} marks"
    )
    pixels_BHWC = to_pixels(images_BCHW)
    columns = min(columns, len(captions))
    layout = _lay_out(pixels_BHWC.shape[1:3], captions, columns, has_marks=passed is not None)
    canvas = Image.new("RGB", (MARGIN + columns * (layout.width + MARGIN), layout.tops[-1]), "white")
    draw = ImageDraw.Draw(canvas)
    for index, pixels_HWC in enumerate(pixels_BHWC):
        left, top = layout.place(index)
        picture = Image.fromarray(pixels_HWC)
        canvas.paste(picture.resize((layout.width, layout.height), Image.Resampling.NEAREST), (left, top))
        _draw_caption(draw, layout, index, None if passed is None else passed[index])
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG")
    replace_file(path, buffer.getvalue())


def to_pixels(images_BCHW: torch.Tensor) -> np.ndarray:
    """Images in [-1, 1] as bytes [B, H, W, C]; numbers beyond are clipped, NaN is grey."""
    unit = images_BCHW.detach().float().nan_to_num().clamp(-1, 1)
    pixels: np.ndarray = ((unit + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return pixels


@dataclass(frozen=True)
class _Layout:
    """Where pictures and captions go, in pixels; `tops` of the rows, and the height of the whole."""

    width: int
    height: int
    columns: int
    indent: int
    lines: list[list[str]]
    tops: list[int]

    def place(self, index: int) -> tuple[int, int]:
        """Left and top edge of a picture."""
        row, column = divmod(index, self.columns)
        return MARGIN + column * (self.width + MARGIN), self.tops[row]


def _lay_out(size: tuple[int, ...], captions: Sequence[str], columns: int, *, has_marks: bool) -> _Layout:
    factor = max(1, math.ceil(MIN_CELL / size[1]))
    height, width = size[0] * factor, size[1] * factor
    indent = CAPTION_SIZE + 3 if has_marks else 0
    lines = [_wrap(caption, width - indent) for caption in captions]
    tops = [MARGIN]
    for first in range(0, len(lines), columns):
        text_height = LINE_HEIGHT * max(len(text) for text in lines[first : first + columns])
        tops.append(tops[-1] + height + text_height + MARGIN // 2 + MARGIN)
    return _Layout(width, height, columns, indent, lines, tops)


def _draw_caption(draw: ImageDraw.ImageDraw, layout: _Layout, index: int, is_right: bool | None) -> None:
    left, top = layout.place(index)
    text_top, color = top + layout.height + MARGIN // 2, INK
    if is_right is not None:
        mark, color = ("\N{CHECK MARK}", GOOD) if is_right else ("\N{BALLOT X}", BAD)
        frame = (left - 3, top - 3, left + layout.width + 2, top + layout.height + 2)
        draw.rectangle(frame, outline=color, width=2)
        draw.text((left, text_top), mark, fill=color, font=_font(mark))
    for number, line in enumerate(layout.lines[index]):
        place = (left + layout.indent, text_top + number * LINE_HEIGHT)
        draw.text(place, line, fill=color, font=_font(line))


def _wrap(text: str, width: int) -> list[str]:
    """Lines that fit into `width` pixels, the last one ending in an ellipsis if there would be too many."""
    # Half a surrogate pair cannot be drawn.
    text = " ".join(text[:MAX_LETTERS].encode("utf-8", "replace").decode("utf-8").split())
    # Scripts without spaces have wide letters, so the mean width of this text decides.
    letter_width = _font(text).getlength(text) / max(1, len(text))
    wrapped = textwrap.wrap(
        text,
        max(4, int(width / max(1.0, letter_width * 1.05))),
        max_lines=CAPTION_LINES,
        placeholder=" \N{HORIZONTAL ELLIPSIS}",
    )
    return wrapped or [""]


def _font(text: str) -> ImageFont.FreeTypeFont:
    letters = frozenset(ord(letter) for letter in text if not letter.isspace())
    return _load_font(_font_file(letters))


@functools.cache
def _load_font(file: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, CAPTION_SIZE)


@functools.lru_cache(maxsize=4096)
def _font_file(letters: frozenset[int]) -> str:
    """Matplotlib's own DejaVu Sans, or the first font of this machine that has all letters where DejaVu lacks
    some."""
    default = str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    files = [default, *(entry.fname for entry in fontManager.ttflist)]
    return next((file for file in files if letters <= _letters_of(file)), default)


@functools.cache
def _letters_of(file: str) -> frozenset[int]:
    return frozenset(FT2Font(file).get_charmap())
