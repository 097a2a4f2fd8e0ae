"""Masks of classes: image files whose pixels are grey levels, palette indices or colours."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sft_mlflow.data.images import BrokenImageError, read_bytes, stored
from sft_mlflow.data.truth import MaskValues
from sft_mlflow.errors import DataError

# In an array of class indices: a pixel that counts neither for nor against a model.
IGNORED = 255
MOST_CLASSES = IGNORED


@dataclass(frozen=True, slots=True)
class MaskFacts:
    """What one read of a mask tells.

    pixels: of each class; unknown: pixels of each value that is no class and not ignored.
    """

    digest: str
    width: int
    height: int
    pixels: dict[str, int]
    unknown: dict[str, int]


def mask_facts(path: Path, values: MaskValues) -> MaskFacts:
    """What is in the mask. Raises BrokenImageError."""
    data = read_bytes(path)
    raw = _raw(data, path, values)
    found, counts = np.unique(raw, return_counts=True)
    pixels: dict[str, int] = {}
    unknown: dict[str, int] = {}
    for number, count in zip(found.tolist(), counts.tolist(), strict=True):
        value = _value(number, values)
        if value in values.classes:
            name = values.classes[value]
            pixels[name] = pixels.get(name, 0) + count
        elif value not in values.ignored:
            unknown[value] = count
    height, width = raw.shape
    return MaskFacts(hashlib.sha256(data).hexdigest(), width, height, pixels, unknown)


def read_mask(
    source: Path | bytes, values: MaskValues, classes: Sequence[str]
) -> NDArray[np.uint8]:
    """Class indices (H, W) uint8, IGNORED where the pixel is of none of the classes.

    Raises BrokenImageError, and DataError for more classes than an index can name.
    """
    if len(classes) > MOST_CLASSES:
        raise DataError(f"{len(classes)} classes are more than the {MOST_CLASSES} of a mask.")
    path = source if isinstance(source, Path) else None
    data = read_bytes(source) if isinstance(source, Path) else source
    raw = _raw(data, path, values)
    index = {name: number for number, name in enumerate(classes)}

    def indices(numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        names = [values.classes.get(_value(number, values)) for number in numbers.tolist()]
        return np.array([IGNORED if n is None else index.get(n, IGNORED) for n in names], np.uint8)

    if not values.in_colour:
        # Few values, and looking one up is faster than sorting the pixels.
        return indices(np.arange(raw.max() + 1))[raw]
    found, inverse = np.unique(raw, return_inverse=True)
    return indices(found)[inverse].reshape(raw.shape)


def _raw(data: bytes, path: Path | None, values: MaskValues) -> NDArray[np.int64]:
    """(H, W): grey levels or palette indices, or colours as 0xRRGGBB."""
    if values.in_colour:
        image = stored(data, path).convert("RGB")
        red, green, blue = np.moveaxis(np.asarray(image, np.int64), -1, 0)
        packed: NDArray[np.int64] = (red << 16) | (green << 8) | blue
        return packed
    pixels = levels(data, path)
    if pixels is None:
        reason = "the mask is in colour, and no table says which colour is which class"
        raise BrokenImageError(path, "bad-mask", reason)
    return pixels


def levels(data: bytes, path: Path | None) -> NDArray[np.int64] | None:
    """Grey levels or palette indices (H, W); None for a picture in colour.

    Raises BrokenImageError.
    """
    image = stored(data, path)
    pixels = np.asarray(image).astype(np.int64)
    if pixels.ndim == 2:
        return pixels
    # Some programs write the same index into each channel; an alpha channel is no index.
    colours = pixels[..., [name not in "Aa" for name in image.getbands()]]
    if not (colours == colours[..., :1]).all():
        return None
    grey: NDArray[np.int64] = colours[..., 0]
    return grey


def _value(number: int, values: MaskValues) -> str:
    if not values.in_colour:
        return str(number)
    return f"{number >> 16},{number >> 8 & 255},{number & 255}"
