"""Which box was found for which object, as a person would count it: at one threshold of score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from sft_mlflow.tasks.detection.boxes import Boxes

# Boxes that lie on each other at least so much are the same object.
IOU = 0.5
# Of a box that is shown to people, and counted in the confusion matrix.
SCORE = 0.3


def sure(found: Boxes, score: float = SCORE) -> Boxes:
    """Those of at least that score."""
    kept = found.scores >= score
    return Boxes(found.boxes[kept], found.labels[kept], found.scores[kept])


def match(found: Boxes, truth: Boxes, iou: float = IOU) -> NDArray[np.intp]:
    """Index of the true box that each found one covers, or -1, whatever the classes.

    A true box is given away once, greedily, to the highest score; of several it is the one that
    is covered most.
    """
    matched = np.full(len(found), -1, np.intp)
    if not len(found) or not len(truth):
        return matched
    covered = box_iou(torch.from_numpy(found.boxes), torch.from_numpy(truth.boxes)).numpy()
    free = np.ones(len(truth), bool)
    for row in np.argsort(-found.scores, kind="stable"):
        best = int(np.where(free, covered[row], -1.0).argmax())
        if free[best] and covered[row, best] >= iou:
            matched[row] = best
            free[best] = False
    return matched


def confusion(found: Sequence[Boxes], truth: Sequence[Boxes], classes: int) -> NDArray[np.int64]:
    """Counts (classes + 1, classes + 1) of boxes: true class, found class; the last is background.

    found: boxes that are sure enough. What is found where nothing is stands in the last row, what
    was not found in the last column.
    """
    counts = np.zeros((classes + 1, classes + 1), np.int64)
    for some, true in zip(found, truth, strict=True):
        matched = match(some, true)
        for label, at in zip(some.labels, matched, strict=True):
            counts[true.labels[at] if at >= 0 else classes, label] += 1
        missed = np.setdiff1d(np.arange(len(true)), matched)
        for label in true.labels[missed]:
            counts[label, classes] += 1
    return counts


def share_right(found: Boxes, truth: Boxes) -> float:
    """F1 of one image: boxes of the right place and class among those found and those true.

    1 where nothing is and nothing was found.
    """
    if not len(found) and not len(truth):
        return 1.0
    matched = match(found, truth)
    hits: int = sum(
        bool(at >= 0 and truth.labels[at] == label)
        for label, at in zip(found.labels, matched, strict=True)
    )
    return 2.0 * hits / (len(found) + len(truth))
