"""A canvas of fixed size that pictures of any shape are laid on, and the way back.

Networks that look at a whole batch, and stores that keep what they make of an image, want one
shape. A picture is scaled until it fits and laid into the upper left corner; nothing is cropped.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sft_mlflow.data.images import RESAMPLING, Interpolation
from sft_mlflow.data.masks import IGNORED

# Grey: what a network that is shown centred values takes for nothing.
PADDING = 127
# Networks halve their maps five times.
MULTIPLE = 32


@dataclass(frozen=True, slots=True)
class Canvas:
    """In pixels."""

    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a picture of `of_width` x `of_height` pixels lies on its canvas: its size there."""

    width: int
    height: int
    of_width: int
    of_height: int

    @property
    def scale(self) -> NDArray[np.float64]:
        """Factors of x and y, twice, as boxes (xmin, ymin, xmax, ymax) want them."""
        x, y = self.width / self.of_width, self.height / self.of_height
        return np.array([x, y, x, y])


def canvas_for(sizes: Sequence[tuple[int, int]], longer_side: int) -> Canvas:
    """The canvas with that longer side that fits the usual shape among (width, height) sizes."""
    ratio = statistics.median(width / height for width, height in sizes)
    shorter = longer_side * min(ratio, 1 / ratio)
    rounded = max(MULTIPLE, MULTIPLE * round(shorter / MULTIPLE))
    return Canvas(rounded, longer_side) if ratio >= 1 else Canvas(longer_side, rounded)


def place(canvas: Canvas, width: int, height: int) -> Placement:
    """Where a picture of that size lies."""
    scale = min(canvas.width / width, canvas.height / height)
    return Placement(
        min(canvas.width, max(1, round(width * scale))),
        min(canvas.height, max(1, round(height * scale))),
        width,
        height,
    )


def lay(
    picture: Image.Image, size: tuple[int, int], canvas: Canvas, interpolation: Interpolation
) -> NDArray[np.uint8]:
    """The canvas (height, width, 3) with the picture on it.

    size: width and height of the whole picture, of which this may be a smaller draft.
    """
    at = place(canvas, *size)
    scaled = picture.resize((at.width, at.height), RESAMPLING[interpolation])
    pixels = np.full((canvas.height, canvas.width, 3), PADDING, np.uint8)
    pixels[: at.height, : at.width] = np.asarray(scaled.convert("RGB"))
    return pixels


def lay_mask(indices: NDArray[np.uint8], canvas: Canvas) -> NDArray[np.uint8]:
    """The canvas (height, width) with a mask of class indices on it, IGNORED around it."""
    height, width = indices.shape
    at = place(canvas, width, height)
    scaled = Image.fromarray(indices).resize((at.width, at.height), Image.Resampling.NEAREST)
    laid = np.full((canvas.height, canvas.width), IGNORED, np.uint8)
    laid[: at.height, : at.width] = np.asarray(scaled)
    return laid


def boxes_on_canvas(boxes: NDArray[np.float64], at: Placement) -> NDArray[np.float64]:
    """Boxes (N, 4) of the picture, in pixels of the canvas."""
    return boxes * at.scale


def boxes_in_picture(boxes: NDArray[np.float64], at: Placement) -> NDArray[np.float64]:
    """Boxes (N, 4) of the canvas, in pixels of the picture, cut off at its edges."""
    edges = np.array([at.of_width, at.of_height] * 2)
    return np.clip(boxes / at.scale, 0, edges)
