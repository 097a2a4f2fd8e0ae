"""Images for people: small, and with what was found drawn on them."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from sft_mlflow.data.images import decode

QUALITY = 88
# Between pictures of one sheet, in pixels.
_GAP = 4


def thumbnail(path: Path, side: int = 160) -> bytes:
    """A JPEG of the whole picture whose longer side is at most `side` pixels.

    A picture of less than half of that is enlarged by a whole factor, so that its pixels show.
    Raises DataError where the file gives no pixels.
    """
    picture = decode(path, shorter_side=side)
    factor = side // max(picture.size)
    if factor > 1:
        larger = (picture.width * factor, picture.height * factor)
        picture = picture.resize(larger, Image.Resampling.NEAREST)
    picture.thumbnail((side, side))
    return jpeg(picture)


def stacked(jpegs: Sequence[bytes]) -> bytes:
    """One JPEG of several, one below the other."""
    pictures = [Image.open(io.BytesIO(one)) for one in jpegs]
    width = max(picture.width for picture in pictures)
    height = sum(picture.height + _GAP for picture in pictures)
    sheet = Image.new("RGB", (width, height), "white")
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height + _GAP
    return jpeg(sheet)


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two of the same size, one at the right of the other."""
    sheet = Image.new("RGB", (left.width + _GAP + right.width, left.height), "white")
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width + _GAP, 0))
    return sheet


def colours(count: int) -> list[tuple[int, int, int]]:
    """So many colours that are told apart, the first ones best."""
    # Hues a golden ratio apart never come close to those before.
    hues = [(0.58 + 0.618034 * number) % 1 for number in range(count)]
    parts = [colorsys.hsv_to_rgb(hue, 0.85, (1.0, 0.75)[n % 2]) for n, hue in enumerate(hues)]
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in parts]


def jpeg(picture: Image.Image) -> bytes:
    """The picture as the bytes of a JPEG file."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()
