"""Decoded uint8 pixels of one size, of one image and of a stream of them."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sft_mlflow.data.canvas import Canvas, lay
from sft_mlflow.data.images import BrokenImageError, Interpolation, decode_sized, fit_square
from sft_mlflow.data.ordered import ordered_map

# What inner values of so many images of that side take is what every machine has.
_TOGETHER, _USUAL_SIDE = 64, 224


@dataclass(frozen=True, slots=True)
class PixelSpec:
    """How a picture becomes what a network is shown.

    size: side in pixels of the centre square that is taken; canvas: the whole picture is laid on
    it instead; interpolation: the filter that scales.
    """

    size: int
    interpolation: Interpolation
    canvas: Canvas | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the pixels: height, width and three colours."""
        if self.canvas is not None:
            return self.canvas.height, self.canvas.width, 3
        return self.size, self.size, 3

    @property
    def together(self) -> int:
        """How many images pass through a network at once: a power of two, so that parts fit."""
        height, width, _ = self.shape
        fitting = max(1, _TOGETHER * _USUAL_SIDE**2 // (height * width))
        return min(_TOGETHER, 1 << int(math.log2(fitting)))


# Pixels and own size of a picture.
_Shown = tuple[NDArray[np.uint8], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Batch:
    """Some consecutive images of a stream.

    paths: all of them, in order; pixels: uint8 (readable, height, width, 3), row i is the picture
    of paths[readable[i]]; sizes: width and height of the upright pictures of those rows; errors:
    the reason for each other position.
    """

    paths: tuple[Path, ...]
    pixels: NDArray[np.uint8]
    sizes: tuple[tuple[int, int], ...]
    readable: tuple[int, ...]
    errors: dict[int, str]


def shown(source: Path | bytes, spec: PixelSpec) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Pixels of one image file or its bytes, of the spec's shape, and the picture's own size.

    The size is width and height of the upright picture. Raises BrokenImageError.
    """
    if spec.canvas is None:
        picture, size = decode_sized(source, shorter_side=spec.size)
        return fit_square(picture, spec.size, spec.interpolation), size
    shorter = min(spec.canvas.height, spec.canvas.width)
    picture, size = decode_sized(source, shorter_side=shorter)
    return lay(picture, size, spec.canvas, spec.interpolation), size


def pixels_of(source: Path | bytes, spec: PixelSpec) -> NDArray[np.uint8]:
    """The pixels alone."""
    return shown(source, spec)[0]


def stream(
    paths: Iterable[Path],
    spec: PixelSpec,
    batch_size: int,
    *,
    threads: int = 2,
    ahead: int = 4,
) -> Generator[Batch, None, None]:
    """Batches of the images, in order, decoded while the consumer works on earlier ones.

    Never more than `ahead` batches of images are held, however many paths come. The last batch
    may be smaller. A broken image is an error of its row, never replaced.
    """

    def attempt(path: Path) -> tuple[Path, _Shown | str]:
        try:
            return path, shown(path, spec)
        except BrokenImageError as error:
            return path, error.reason

    decoded = ordered_map(attempt, paths, threads=threads, ahead=ahead * batch_size)
    try:
        while rows := list(islice(decoded, batch_size)):
            yield _batch(rows, spec)
    finally:
        decoded.close()


def _batch(rows: Sequence[tuple[Path, _Shown | str]], spec: PixelSpec) -> Batch:
    good = [(at, found) for at, (_, found) in enumerate(rows) if not isinstance(found, str)]
    pixels = np.empty((len(good), *spec.shape), dtype=np.uint8)
    for row, (_, (found, _)) in enumerate(good):
        pixels[row] = found
    return Batch(
        paths=tuple(path for path, _ in rows),
        pixels=pixels,
        sizes=tuple(size for _, (_, size) in good),
        readable=tuple(at for at, _ in good),
        errors={at: found for at, (_, found) in enumerate(rows) if isinstance(found, str)},
    )
