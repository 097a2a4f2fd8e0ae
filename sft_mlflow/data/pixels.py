"""Decoded, square, uint8 pixels, of one image and of a stream of them."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sft_mlflow.data.canvas import Canvas, lay
from sft_mlflow.data.images import BrokenImageError, Interpolation, decode, fit_square
from sft_mlflow.data.ordered import ordered_map


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


@dataclass(frozen=True, slots=True)
class Batch:
    """Some consecutive images of a stream.

    paths: all of them, in order; pixels: uint8 (readable, height, width, 3), row i is the picture
    of paths[readable[i]]; errors: the reason for each other position.
    """

    paths: tuple[Path, ...]
    pixels: NDArray[np.uint8]
    readable: tuple[int, ...]
    errors: dict[int, str]


def pixels_of(source: Path | bytes, spec: PixelSpec) -> NDArray[np.uint8]:
    """Pixels of one image file or its bytes, of the spec's shape. Raises BrokenImageError."""
    if spec.canvas is not None:
        shorter = min(spec.canvas.height, spec.canvas.width)
        return lay(decode(source, shorter_side=shorter), spec.canvas, spec.interpolation)
    return fit_square(decode(source, shorter_side=spec.size), spec.size, spec.interpolation)


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

    def attempt(path: Path) -> tuple[Path, NDArray[np.uint8] | str]:
        try:
            return path, pixels_of(path, spec)
        except BrokenImageError as error:
            return path, error.reason

    decoded = ordered_map(attempt, paths, threads=threads, ahead=ahead * batch_size)
    try:
        while rows := list(islice(decoded, batch_size)):
            yield _batch(rows, spec)
    finally:
        decoded.close()


def _batch(rows: Sequence[tuple[Path, NDArray[np.uint8] | str]], spec: PixelSpec) -> Batch:
    good = [(at, found) for at, (_, found) in enumerate(rows) if not isinstance(found, str)]
    pixels = np.empty((len(good), *spec.shape), dtype=np.uint8)
    for row, (_, found) in enumerate(good):
        pixels[row] = found
    return Batch(
        paths=tuple(path for path, _ in rows),
        pixels=pixels,
        readable=tuple(at for at, _ in good),
        errors={at: found for at, (_, found) in enumerate(rows) if isinstance(found, str)},
    )
