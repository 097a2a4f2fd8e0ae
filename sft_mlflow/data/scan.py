"""Facts about image files, from one read of each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image

from sft_mlflow.data.images import BrokenImageError, ProblemKind, examine, read_bytes
from sft_mlflow.data.ordered import THREADS, ordered_map

Progress = Callable[[int, int], None]

THUMBNAIL_SIDE = 16
_THUMBNAIL_BYTES = THUMBNAIL_SIDE**2 * 3
_CANVAS_SIDE = 64
_NO_BYTES = memoryview(b"")


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a file gives no pixels."""

    kind: ProblemKind
    reason: str


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What one read of a file tells.

    digest: SHA-256 of the bytes in hex, "" where they could not be read; width, height: as seen,
    after EXIF orientation; mode: Pillow's name of the stored one; hashes: perceptual ones of 64
    bits, imagehash's phash and dhash; thumbnail: 16 x 16 RGB bytes of the whole picture, squeezed
    into the square (`scan` gives views of one buffer). Where there is a problem, the fields about
    the picture are empty.
    """

    path: Path
    digest: str
    size_bytes: int
    width: int = 0
    height: int = 0
    format: str = ""
    mode: str = ""
    frames: int = 0
    orientation: int = 1
    transparent: bool = False
    hashes: tuple[int, int] = (0, 0)
    thumbnail: memoryview = _NO_BYTES
    problem: Problem | None = None


def scan(paths: Sequence[Path], *, progress: Progress | None = None) -> tuple[FileFacts, ...]:
    """Facts of each file, in the order of the paths; a broken file is a fact, not an error.

    Every file is read once and decoded to the end, since only that finds truncated ones.
    progress: called with (files done, files in all), in the calling thread.
    """
    facts: list[FileFacts] = []
    # Side by side: what is kept of the files would lie between single ones, and the holes that they
    # leave be of no use to anyone (of 100,000 images 70 MB).
    thumbnails = memoryview(bytearray(len(paths) * _THUMBNAIL_BYTES))
    for found in ordered_map(_facts, paths, ahead=4 * THREADS):
        start = len(facts) * _THUMBNAIL_BYTES
        view = thumbnails[start : start + len(found.thumbnail)]
        view[:] = found.thumbnail
        facts.append(replace(found, thumbnail=view.toreadonly()))
        if progress is not None:
            progress(len(facts), len(paths))
    return tuple(facts)


def _facts(path: Path) -> FileFacts:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        # No manifest and no table could name it.
        return FileFacts(path, "", 0, problem=Problem("unreadable", "its name is not UTF-8"))
    try:
        data = read_bytes(path)
    except BrokenImageError as error:
        return FileFacts(path, "", 0, problem=Problem(error.kind, error.reason))
    digest = hashlib.sha256(data).hexdigest()
    try:
        picture, encoding = examine(data, path, shorter_side=_CANVAS_SIDE)
    except BrokenImageError as error:
        return FileFacts(path, digest, len(data), problem=Problem(error.kind, error.reason))
    # One small canvas serves hash and thumbnail; a full-size picture would be resized twice.
    canvas = picture.resize((_CANVAS_SIDE, _CANVAS_SIDE), Image.Resampling.BOX)
    thumbnail = canvas.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
    return FileFacts(
        path=path,
        digest=digest,
        size_bytes=len(data),
        width=encoding.width,
        height=encoding.height,
        format=encoding.format,
        mode=encoding.mode,
        frames=encoding.frames,
        orientation=encoding.orientation,
        transparent=encoding.transparent,
        hashes=(_number(imagehash.phash(canvas)), _number(imagehash.dhash(canvas))),
        thumbnail=memoryview(thumbnail.tobytes()),
    )


def _number(hashed: imagehash.ImageHash) -> int:
    return int.from_bytes(np.packbits(hashed.hash.ravel()).tobytes(), "big")
