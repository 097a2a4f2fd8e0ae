"""Which box was found for which object, as a person would count it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from sft_mlflow.tasks.detection.boxes import Boxes

# Boxes that lie on each other at least so much are the same object.
IOU = 0.5


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


def best_score(found: Sequence[Boxes], truth: Sequence[Boxes]) -> float:
    """The score from which on boxes have the best F1; 0 where no box is right.

    Greedy matching by falling score gives those above any score the same boxes as all together.
    """
    scores = np.concatenate([one.scores for one in found])
    hits = np.concatenate([_hits(some, true) for some, true in zip(found, truth, strict=True)])
    if not hits.any():
        return 0.0
    order = np.argsort(-scores, kind="stable")
    right = hits[order].cumsum()
    f1 = 2 * right / (np.arange(1, len(right) + 1) + sum(map(len, truth)))
    return float(scores[order[f1.argmax()]])


def _hits(found: Boxes, truth: Boxes) -> NDArray[np.bool_]:
    """Whether each box is at the place of an object of its class."""
    matched = match(found, truth)
    right = matched >= 0
    right[right] = truth.labels[matched[right]] == found.labels[right]
    return right


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
    return 2.0 * int(_hits(found, truth).sum()) / (len(found) + len(truth))
