"""How well boxes are found: COCO's average precision, counted by faster-coco-eval."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from sft_mlflow.tasks.detection.boxes import Boxes
from sft_mlflow.tasks.figures import Curve


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


def average_precision(
    found: Sequence[Boxes], truth: Sequence[Boxes], classes: Sequence[str]
) -> Precision:
    """COCO's mean average precision of the boxes found, at most 100 an image.

    found, truth: one an image, in the same order.
    """
    true_boxes = [
        {**box, "id": number, "iscrowd": 0, "area": box["bbox"][2] * box["bbox"][3]}
        for number, box in enumerate(_annotations(truth), 1)
    ]
    reference = {
        "images": [{"id": number} for number in range(len(truth))],
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes)],
        "annotations": true_boxes,
    }
    answers = _annotations(found)
    if not answers or not true_boxes:
        known = {classes[box["category_id"]]: 0.0 for box in true_boxes}
        nothing = 0.0 if true_boxes else float("nan")
        no = float("nan")
        return Precision(nothing, nothing, nothing, no, no, no, known, known)
    # It prints what it does.
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(reference)
        evaluation = COCOeval_faster(coco, coco.loadRes(answers), iouType="bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # COCO's own word for "no such object" is -1.
    at_all, at_50, at_75, small, medium, large = (
        float(value) if value > -1 else float("nan") for value in evaluation.stats[:6]
    )
    # (IoU thresholds, recalls, classes, areas, most boxes)
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    counted = {n: name for n, name in enumerate(classes) if (precision[:, :, n] > -1).all()}
    recall = np.linspace(0, 1, precision.shape[1])
    return Precision(
        at_all,
        at_50,
        at_75,
        small,
        medium,
        large,
        per_class={name: float(precision[:, :, n].mean()) for n, name in counted.items()},
        per_class_50={name: float(precision[0, :, n].mean()) for n, name in counted.items()},
        curves=tuple(Curve(name, recall, precision[0, :, n]) for n, name in counted.items()),
    )


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
