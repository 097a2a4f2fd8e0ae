"""Image files to RGB pixels, the way a person sees them."""

from __future__ import annotations

import io
import math
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from sft_mlflow.errors import DataError

Interpolation = Literal["nearest", "bilinear", "bicubic"]
ProblemKind = Literal[
    "unreadable", "truncated", "empty", "not-an-image", "bomb", "bad-mask", "bad-boxes"
]

# Pillow's own default: a quarter of a gigabyte of RGB. Theirs only warns up to twice as much.
MAX_PIXELS = 89_478_485

# A JPEG is decoded at a fraction of its size, but never below this multiple of what is asked:
# Pillow's `thumbnail` uses the same gap, beyond which the eye sees no difference.
_DRAFT_GAP = 2.0

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_FIRST_SIDEWAYS = 5

# What Pillow's plugins raise on broken files; `Image.open` itself lists most of these.
_PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)

_FORMATS_SPOKEN = "JPEG, PNG, WebP, TIFF, BMP and GIF"


class BrokenImageError(DataError):
    """One file that gives no pixels: `kind` for programs, `reason` for people."""

    def __init__(self, source: Path | None, kind: ProblemKind, reason: str) -> None:
        super().__init__(f"{source}: {reason}" if source else f"image: {reason}")
        self.source = source
        self.kind: ProblemKind = kind
        self.reason = reason

    def __reduce__(self) -> tuple[type[BrokenImageError], tuple[object, ...]]:
        # An exception is pickled by its message, which is not what this one is made of.
        return type(self), (self.source, self.kind, self.reason)


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a file stores its picture.

    mode: Pillow's name; width, height: as seen, once turned by `orientation`, EXIF's 1 to 8;
    frames: of an animation, or pages of a TIFF.
    """

    format: str
    mode: str
    width: int
    height: int
    frames: int
    orientation: int
    transparent: bool


def decode(source: Path | bytes, *, shorter_side: int | None = None) -> Image.Image:
    """The picture in RGB, upright, over white where it is transparent.

    Grey, palette, CMYK, 16-bit and float files are converted; of several frames it is the first.
    shorter_side: the least number of pixels that is needed; a large JPEG is then decoded at a
    fraction of its size, which is much faster. The result is never smaller than asked for that
    reason. Files: JPEG, PNG, WebP, TIFF, BMP, GIF, of at most MAX_PIXELS.
    Raises BrokenImageError (a DataError) with the reason.
    """
    path = source if isinstance(source, Path) else None
    data = read_bytes(source) if isinstance(source, Path) else source
    image = _opened(data, path)
    return _upright_rgb(image, data, path, shorter_side)


def examine(
    data: bytes, path: Path | None, *, shorter_side: int | None = None
) -> tuple[Image.Image, Encoding]:
    """The picture as `decode` gives it, and how the file stores it. Raises BrokenImageError."""
    image = _opened(data, path)
    mode = image.mode
    picture, (width, height), orientation = _sized(image, data, path, shorter_side)
    encoding = Encoding(
        format=str(image.format),
        mode=mode,
        width=width,
        height=height,
        frames=_frames(image, data),
        orientation=orientation,
        transparent=image.has_transparency_data,
    )
    return picture, encoding


def decode_sized(
    source: Path | bytes, *, shorter_side: int | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """The picture as `decode` gives it, and width and height of the whole upright one.

    Raises BrokenImageError.
    """
    path = source if isinstance(source, Path) else None
    data = read_bytes(source) if isinstance(source, Path) else source
    picture, size, _ = _sized(_opened(data, path), data, path, shorter_side)
    return picture, size


def stored(data: bytes, path: Path | None) -> Image.Image:
    """The picture as the file has it: grey levels, palette indices or colours, not turned.

    Raises BrokenImageError.
    """
    image = _opened(data, path)
    try:
        with _quiet(data):
            image.load()
    except Image.DecompressionBombError as error:
        raise BrokenImageError(path, "bomb", str(error)) from error
    except _PILLOW_ERRORS as error:
        raise _broken(path, error, header=False) from error
    return image


def read_bytes(path: Path) -> bytes:
    """The file's bytes. Raises BrokenImageError where the system does not give them."""
    try:
        return path.read_bytes()
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
        raise BrokenImageError(path, "unreadable", reason) from error


def fit_square(image: Image.Image, size: int, interpolation: Interpolation) -> NDArray[np.uint8]:
    """Pixels (size, size, 3) of the centre square: shorter side scaled to size, then cropped.

    Antialiased. The crop is named to the resize as a box, so a very long strip costs no memory.
    """
    shorter = min(image.size)
    left, top = (image.width - shorter) / 2, (image.height - shorter) / 2
    box = (left, top, left + shorter, top + shorter)
    square = image.resize((size, size), RESAMPLING[interpolation], box=box)
    return np.array(square.convert("RGB"), dtype=np.uint8)


class _Jpeg(JpegImageFile):
    """A JPEG whose resolution is not looked up in EXIF, where Pillow warns of broken tags."""

    def _read_dpi_from_exif(self) -> None:
        return


def _plugin(data: bytes) -> type[ImageFile.ImageFile] | None:
    """The Pillow class for the file's first bytes, whatever its name says."""
    if data.startswith(b"\xff\xd8\xff"):
        return _Jpeg
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImageFile
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return TiffImageFile
    if data.startswith((b"GIF87a", b"GIF89a")):
        return GifImageFile
    if data.startswith(b"BM"):
        return BmpImageFile
    return None


def _opened(data: bytes, path: Path | None) -> ImageFile.ImageFile:
    """The image with its header read and no pixel decoded.

    Not `Image.open`: it warns of sizes that are refused here anyway, and tries every plugin.
    """
    if not data:
        raise BrokenImageError(path, "empty", "the file is empty")
    plugin = _plugin(data)
    if plugin is None:
        reason = f"not an image that can be read ({_FORMATS_SPOKEN} can)"
        raise BrokenImageError(path, "not-an-image", reason)
    try:
        with _quiet(data):
            image = plugin(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise BrokenImageError(path, "bomb", str(error)) from error
    except _PILLOW_ERRORS as error:
        raise _broken(path, error, header=True) from error
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        reason = (
            f"{image.width} x {image.height} pixels are more than the {MAX_PIXELS} that are "
            "decoded (it may be a decompression bomb); scale it down"
        )
        raise BrokenImageError(path, "bomb", reason)
    if pixels == 0:
        raise BrokenImageError(path, "empty", "the image has no pixels")
    return image


def _sized(
    image: ImageFile.ImageFile, data: bytes, path: Path | None, shorter_side: int | None
) -> tuple[Image.Image, tuple[int, int], int]:
    """The upright picture, width and height that it has without a draft, and its orientation."""
    width, height = image.size
    # Loading turns a TIFF and forgets the orientation; a PNG may have its EXIF after the pixels.
    before = _orientation(image)
    picture = _upright_rgb(image, data, path, shorter_side)
    orientation = max(before, _orientation(image))
    if image.format == "TIFF":
        width, height = image.size
    elif orientation >= _FIRST_SIDEWAYS:
        width, height = height, width
    return picture, (width, height), orientation


def _upright_rgb(
    image: ImageFile.ImageFile, data: bytes, path: Path | None, shorter_side: int | None
) -> Image.Image:
    try:
        if shorter_side is not None:
            scale = _DRAFT_GAP * shorter_side / min(image.size)
            if scale < 1:
                # None keeps the colour mode as stored.
                least = (math.ceil(image.width * scale), math.ceil(image.height * scale))
                image.draft(None, least)
        with _quiet(data):
            image.load()
        picture = _rgb(image)
    except Image.DecompressionBombError as error:
        raise BrokenImageError(path, "bomb", str(error)) from error
    except _PILLOW_ERRORS as error:
        raise _broken(path, error, header=False) from error
    # TIFF turns its pixels itself while it loads.
    orientation = 1 if image.format == "TIFF" else _orientation(image)
    method = _UPRIGHT.get(orientation)
    return picture if method is None else picture.transpose(method)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if image.has_transparency_data or image.mode in ("RGBa", "La"):
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Grey values as bytes.

    16-bit files span 0 to 65,535. Wider integers and floats name no range: the first of 1 (floats
    only), 255 and 65,535 that holds all values is taken as white; else lowest to highest value.
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;"):
        low, white = 0.0, 65_535.0
    else:
        ceilings = (1.0, 255.0, 65_535.0) if image.mode == "F" else (255.0, 65_535.0)
        white = next((top for top in ceilings if low >= 0 and high <= top), high)
        low = low if low < 0 or high > ceilings[-1] else 0.0
    span = (white - low) or 1.0
    scaled: NDArray[np.uint8] = np.rint((values - low) * (255.0 / span)).astype(np.uint8)
    return scaled


def _orientation(image: ImageFile.ImageFile) -> int:
    """EXIF's orientation, 1 where there is none or it is nonsense.

    Read here and not by Pillow, which parses every tag and warns of broken ones.
    """
    if isinstance(image, TiffImageFile):
        found = image.tag_v2.get(0x0112, 1)
        return found if found in _UPRIGHT else 1
    exif = image.info.get("exif", b"")
    exif = exif.removeprefix(b"Exif\0\0") if isinstance(exif, bytes) else b""
    order: Literal["little", "big"] = "little" if exif.startswith(b"II") else "big"
    if not exif.startswith((b"II*\0", b"MM\0*")):
        return 1
    start = int.from_bytes(exif[4:8], order)
    count = int.from_bytes(exif[start : start + 2], order)
    for at in range(start + 2, min(start + 2 + 12 * count, len(exif) - 11), 12):
        if int.from_bytes(exif[at : at + 2], order) == 0x0112:
            found = int.from_bytes(exif[at + 8 : at + 10], order)
            return found if found in _UPRIGHT else 1
    return 1


def _frames(image: ImageFile.ImageFile, data: bytes) -> int:
    try:
        with _quiet(data):
            return int(getattr(image, "n_frames", 1))
    except _PILLOW_ERRORS:
        # The first frame is what counts, and it is whole.
        return 1


def _broken(path: Path | None, error: Exception, *, header: bool) -> BrokenImageError:
    if "truncated" in str(error).lower() or isinstance(error, EOFError):
        return BrokenImageError(path, "truncated", "the file ends before its picture does")
    part = "its header" if header else "its pixels"
    return BrokenImageError(path, "unreadable", f"{part} cannot be read: {error}")


_warnings_lock = threading.Lock()


@contextmanager
def _without_pillow_warnings() -> Iterator[None]:
    # Until Python 3.14 the filters belong to the process, not to the thread.
    with _warnings_lock, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _quiet(data: bytes) -> AbstractContextManager[None]:
    """A context for the two formats of which Pillow warns: TIFF, and PNG with animation."""
    tiff = data.startswith((b"II", b"MM"))
    return _without_pillow_warnings() if tiff or b"acTL" in data[:4096] else nullcontext()
