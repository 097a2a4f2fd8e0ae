"""How well masks are found: intersection over union, from counts of pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sft_mlflow.data.masks import IGNORED

# (classes, classes): row is the true class of a pixel, column the predicted one.
Counts = NDArray[np.integer]


def counted(predicted: NDArray[np.uint8], truth: NDArray[np.uint8], classes: int) -> Counts:
    """Pixels of one mask by true and predicted class; ignored ones are in neither.

    predicted, truth: class indices (H, W) of the same size, the image's own.
    """
    known = truth != IGNORED
    pairs = truth[known].astype(np.int64) * classes + predicted[known]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def intersections_over_unions(counts: Counts) -> NDArray[np.float64]:
    """Of each class over all pixels that were counted; nan where it is neither true nor predicted.

    The Jaccard index, as Pascal VOC and Cityscapes report it.
    """
    both = counts.diagonal()
    either = counts.sum(0) + counts.sum(1) - both
    found: NDArray[np.float64] = np.divide(
        both, either, out=np.full(len(counts), np.nan), where=either > 0
    )
    return found


def summary(counts: Counts) -> dict[str, float]:
    """`miou`, over the classes that occur, and `pixel_accuracy`."""
    total = counts.sum()
    return {
        "miou": float(np.nanmean(intersections_over_unions(counts))) if total else 0.0,
        "pixel_accuracy": float(counts.trace() / total) if total else 0.0,
    }


def per_class(counts: Counts, classes: Sequence[str]) -> dict[str, float]:
    """IoU of each class by its name, of those that occur."""
    found = intersections_over_unions(counts)
    return {name: float(iou) for name, iou in zip(classes, found, strict=True) if iou == iou}
