"""How well boxes are found: COCO's average precision, counted by faster-coco-eval."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from sft_mlflow.tasks.detection.boxes import Boxes
from sft_mlflow.tasks.figures import Curve

# Positions of these among COCO's thresholds of IoU, 0.50 to 0.95.
_AT_50, _AT_75 = 0, 5


@dataclass(frozen=True, eq=False)
class Precision:
    """COCO's averages over IoU 0.50 to 0.95, at 0.50 and 0.75, and by size; nan without objects.

    per_class, per_class_50: `map` and `map_50` of each class that has objects; curves: precision
    over recall at 0.50 of each of them.
    """

    map: float
    map_50: float
    map_75: float
    map_small: float
    map_medium: float
    map_large: float
    per_class: Mapping[str, float]
    per_class_50: Mapping[str, float]
    curves: tuple[Curve, ...] = ()


@dataclass(frozen=True, eq=False)
class Matched:
    """Boxes that were matched to the true ones, from which the precision over any draw follows.

    true_boxes: (images, classes); evaluation: COCO's, None where there is nothing to match.
    """

    classes: tuple[str, ...]
    true_boxes: NDArray[np.int64]
    evaluation: COCOeval_faster | None

    @classmethod
    def of(cls, found: Sequence[Boxes], truth: Sequence[Boxes], classes: Sequence[str]) -> Matched:
        """found, truth: one an image, in the same order; at most 100 of an image are counted."""
        numbers = [np.bincount(one.labels, minlength=len(classes)) for one in truth]
        true_boxes = np.array(numbers, np.int64).reshape(len(truth), len(classes))
        answers = _annotations(found)
        if not answers or not true_boxes.any():
            return cls(tuple(classes), true_boxes, None)
        reference = {
            "images": [{"id": number} for number in range(len(truth))],
            "categories": [{"id": i, "name": name} for i, name in enumerate(classes)],
            "annotations": [
                {**box, "id": number, "iscrowd": 0, "area": box["bbox"][2] * box["bbox"][3]}
                for number, box in enumerate(_annotations(truth), 1)
            ],
        }
        coco = COCO(reference)
        evaluation = COCOeval_faster(
            coco, coco.loadRes(answers), iouType="bbox", separate_eval=True
        )
        evaluation.evaluate()
        return cls(tuple(classes), true_boxes, evaluation)

    def precision(self, rows: NDArray[np.intp] | None = None) -> Precision:
        """COCO's average precision. rows: as many images as there are, drawn from them."""
        images = np.arange(len(self.true_boxes)) if rows is None else rows
        shown = self.true_boxes[images].sum(axis=0) > 0
        if self.evaluation is None:
            known = {name: 0.0 for name, there in zip(self.classes, shown, strict=True) if there}
            nothing, no = (0.0 if known else math.nan), math.nan
            return Precision(nothing, nothing, nothing, no, no, no, known, known)
        # Of each class and area one entry an image, in their order.
        entries = self.evaluation._evalImgs_cpp
        starts = range(0, len(entries), len(images))
        drawn = copy.copy(self.evaluation)
        drawn._evalImgs_cpp = [entries[start + row] for start in starts for row in images.tolist()]
        drawn.accumulate()
        # (IoU thresholds, recalls, classes, areas); -1 where there is no such object.
        values = drawn.eval["precision"][..., -1]
        counted = {n: name for n, name in enumerate(self.classes) if shown[n]}
        recall = np.linspace(0, 1, values.shape[1])
        at_all, small, medium, large = (_mean(values[..., area]) for area in range(4))
        return Precision(
            at_all,
            _mean(values[_AT_50, ..., 0]),
            _mean(values[_AT_75, ..., 0]),
            small,
            medium,
            large,
            per_class={name: float(values[:, :, n, 0].mean()) for n, name in counted.items()},
            per_class_50={
                name: float(values[_AT_50, :, n, 0].mean()) for n, name in counted.items()
            },
            curves=tuple(
                Curve(name, recall, values[_AT_50, :, n, 0]) for n, name in counted.items()
            ),
        )


def _mean(values: NDArray[np.float64]) -> float:
    """Of what is defined; nan where nothing is."""
    defined = values[values > -1]
    return float(defined.mean()) if len(defined) else math.nan


def _annotations(images: Sequence[Boxes]) -> list[dict[str, Any]]:
    return [
        {
            "image_id": number,
            "category_id": int(label),
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "score": float(score),
        }
        for number, one in enumerate(images)
        for (x1, y1, x2, y2), label, score in zip(one.boxes, one.labels, one.scores, strict=True)
    ]
