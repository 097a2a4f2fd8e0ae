"""The true mask of an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sft_mlflow.data.manifest import Sample
from sft_mlflow.data.masks import read_mask
from sft_mlflow.data.truth import Mask, MaskValues


def true_mask(
    sample: Sample, classes: Sequence[str], values: MaskValues | None
) -> NDArray[np.uint8]:
    """Class indices (H, W) in the image's own pixels, IGNORED where none counts.

    Raises DataError where the file gives no mask.
    """
    assert isinstance(sample.truth, Mask)
    assert values is not None
    return read_mask(sample.truth.path, values, classes)
