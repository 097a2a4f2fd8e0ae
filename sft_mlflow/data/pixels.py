"""Decoded, square, uint8 pixels: a table on disk for training, a stream for scoring."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from sft_mlflow.data.images import BrokenImageError, Interpolation, decode, fit_square, read_bytes
from sft_mlflow.data.manifest import Sample
from sft_mlflow.data.ordered import THREADS, ordered_map
from sft_mlflow.errors import DataError

# Part of each table's name: to be raised when the same file and spec give other pixels.
_VERSION = 1


@dataclass(frozen=True, slots=True)
class PixelSpec:
    """How a picture becomes a square: pixels a side, and the filter that scales it."""

    size: int
    interpolation: Interpolation


@dataclass(frozen=True, slots=True)
class Batch:
    """Some consecutive images of a stream.

    paths: all of them, in order; pixels: uint8 (readable, size, size, 3), row i is the picture of
    paths[readable[i]]; errors: the reason for each other position.
    """

    paths: tuple[Path, ...]
    pixels: NDArray[np.uint8]
    readable: tuple[int, ...]
    errors: dict[int, str]


def pixels_of(source: Path | bytes, spec: PixelSpec) -> NDArray[np.uint8]:
    """Pixels (size, size, 3) of one image file or its bytes. Raises BrokenImageError."""
    return fit_square(decode(source, shorter_side=spec.size), spec.size, spec.interpolation)


def pixel_table(
    samples: Sequence[Sample],
    spec: PixelSpec,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.uint8]:
    """Read-only, memory-mapped pixels (samples, size, size, 3), rows in the order of the samples.

    Kept in the folder under a name that tells content and spec, so asking again opens it. Safe
    with several processes; a killed one leaves no half table. progress: (images done, in all).
    Raises DataError for a file that is not what the manifest says, or where the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"pixels-{_table_digest(samples, spec)}.npy"
    if not target.exists():
        with FileLock(target.with_suffix(".lock")):
            if not target.exists():
                _write_table(samples, spec, target, progress)
    table: NDArray[np.uint8] = np.load(target, mmap_mode="r")
    return table


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
    pixels = np.empty((len(good), spec.size, spec.size, 3), dtype=np.uint8)
    for row, (_, found) in enumerate(good):
        pixels[row] = found
    return Batch(
        paths=tuple(path for path, _ in rows),
        pixels=pixels,
        readable=tuple(at for at, _ in good),
        errors={at: found for at, (_, found) in enumerate(rows) if isinstance(found, str)},
    )


def _table_digest(samples: Sequence[Sample], spec: PixelSpec) -> str:
    hashed = hashlib.sha256(json.dumps([_VERSION, asdict(spec)]).encode())
    for sample in samples:
        hashed.update(bytes.fromhex(sample.digest))
    return hashed.hexdigest()[:32]


def _write_table(
    samples: Sequence[Sample],
    spec: PixelSpec,
    target: Path,
    progress: Callable[[int, int], None] | None,
) -> None:
    def row(sample: Sample) -> bytes:
        data = read_bytes(sample.path)
        if hashlib.sha256(data).hexdigest() != sample.digest:
            raise DataError(f"{sample.path}: the file changed since it was checked. Start again.")
        return pixels_of(data, spec).tobytes()

    shape = (len(samples), spec.size, spec.size, 3)
    partial = target.with_suffix(".partial")
    try:
        # Written, not mapped: on a full disk a write fails with an error, a mapping with a signal.
        with partial.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for done, pixels in enumerate(ordered_map(row, samples, ahead=4 * THREADS), start=1):
                file.write(pixels)
                if progress is not None:
                    progress(done, len(samples))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except OSError as error:
        raise DataError(
            f"{target.parent}: {error.strerror or error} while writing "
            f"{np.prod(shape, dtype=np.int64) / 1e9:.1f} GB of pixels. Free some space, or use a "
            "smaller image size."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
