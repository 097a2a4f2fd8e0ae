"""The true mask of an image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sft_mlflow.data.images import read_bytes
from sft_mlflow.data.manifest import Sample
from sft_mlflow.data.masks import read_mask
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
