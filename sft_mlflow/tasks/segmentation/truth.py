"""The true mask of an image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sft_mlflow.data.images import read_bytes
from sft_mlflow.data.manifest import Sample
from sft_mlflow.data.masks import IGNORED, read_mask
from sft_mlflow.data.ordered import THREADS, ordered_map
from sft_mlflow.data.truth import Mask, MaskValues
from sft_mlflow.errors import DataError


def true_mask(
    sample: Sample, classes: Sequence[str], values: MaskValues | None
) -> NDArray[np.uint8]:
    """Class indices (H, W) in the image's own pixels, IGNORED where none counts.

    Raises DataError where the file gives no mask, or is no longer the one that was checked.
    """
    assert isinstance(sample.truth, Mask)
    assert values is not None
    data = read_bytes(sample.truth.path)
    if sample.truth.digest and hashlib.sha256(data).hexdigest() != sample.truth.digest:
        raise DataError(f"{sample.truth.path}: the mask changed since it was checked. Start again.")
    return read_mask(data, values, classes)


def true_pixels(
    samples: Sequence[Sample], classes: Sequence[str], values: MaskValues | None
) -> NDArray[np.int64]:
    """How many pixels of their masks each class has, (classes,). Raises DataError as above."""
    read = partial(true_mask, classes=classes, values=values)
    counts = np.zeros(IGNORED + 1, np.int64)
    for mask in ordered_map(read, samples, ahead=4 * THREADS):
        counts += np.bincount(mask.ravel(), minlength=IGNORED + 1)
    return counts[: len(classes)]
