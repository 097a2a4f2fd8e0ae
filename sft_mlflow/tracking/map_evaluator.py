"""The evaluator behind `model_type="object-detection"` and `"semantic-segmentation"`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.data.evaluation_dataset import EvaluationDataset
from mlflow.models.evaluation import EvaluationResult, ModelEvaluator

from sft_mlflow.data.manifest import Sample
from sft_mlflow.data.masks import IGNORED
from sft_mlflow.data.pixels import PixelSpec
from sft_mlflow.data.truth import Box
from sft_mlflow.errors import DataError
from sft_mlflow.tasks.base import Evidence, Frame, Task
from sft_mlflow.tasks.detection import DETECTION
from sft_mlflow.tasks.detection.boxes import Boxes
from sft_mlflow.tasks.segmentation import SEGMENTATION
from sft_mlflow.tasks.segmentation.answering import indices_of
from sft_mlflow.tasks.segmentation.metrics import Counts, counted
from sft_mlflow.tracking.evaluation import answers_to, log_artifacts, log_figures, refuse_extras

# What one image has: boxes or segments, each a mapping, as models made here answer.
Parts = Sequence[Mapping[str, Any]]

_TASKS = {task.model_type: task for task in (DETECTION, SEGMENTATION)}
_COLUMNS = {DETECTION.name: "boxes", SEGMENTATION.name: "segments"}
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_KEYS = {DETECTION.name: ("label", *_CORNERS), SEGMENTATION.name: ("label", "size", "counts")}


@dataclass(frozen=True, eq=False)
class _Judged:
    """Evidence, what it is about, and one made sample an image."""

    evidence: Evidence
    frame: Frame
    samples: tuple[Sample, ...]


class BoxAndMaskEvaluator(ModelEvaluator):  # type: ignore[misc, unused-ignore]
    """Entry point `sft_boxes_and_masks` of `mlflow.model_evaluator`.

    The frame has one column of images, as for classes, and targets in the form that models made
    here answer in, as lists or as JSON: for detection boxes (`label`, `xmin`, `ymin`, `xmax`,
    `ymax` in pixels), for segmentation segments (`label`, `size`, `counts`, COCO's run lengths).
    Logs `map`, `map_50`, ... or `miou` and `pixel_accuracy`; tables by class and of the confusion
    matrix as CSV, and a picture of it.
    """

    @classmethod
    def can_evaluate(
        cls, *, model_type: str, evaluator_config: Mapping[str, Any], **kwargs: Any
    ) -> bool:
        """Whether the model type is one of the two."""
        del evaluator_config, kwargs
        return model_type in _TASKS

    def evaluate(
        self,
        *,
        model_type: str,
        dataset: EvaluationDataset,
        run_id: str,
        evaluator_config: Mapping[str, Any],
        model: Any = None,
        extra_metrics: Any = None,
        custom_artifacts: Any = None,
        predictions: str | None = None,
        model_id: str | None = None,
        **kwargs: Any,
    ) -> EvaluationResult:
        """Figures and artifacts of the model on the data set, also logged to the run.

        Without a model, the data set's own column of predictions is judged. Raises DataError where
        images, targets or answers are not of the form above.
        """
        del evaluator_config, predictions, kwargs
        task = _TASKS[model_type]
        refuse_extras(dataset, extra_metrics, custom_artifacts)
        truth = [_parts(task, v, "target", row) for row, v in enumerate(dataset.labels_data)]
        found = (
            [_parts(task, v, "answer", row) for row, v in enumerate(dataset.predictions_data)]
            if model is None
            else _predicted(task, model, dataset.features_data)
        )
        judge = _boxes if task is DETECTION else _masks
        judged = judge(found, truth)
        judging = task.judging
        figures = judging.evaluate(judged.evidence, judged.samples, judged.frame)
        log_figures(figures, dataset, run_id, model_id)
        by_class = judging.by_class(judged.evidence, judged.samples, judged.frame)
        rows = [(name, count, value) for name, (count, value) in by_class.items()]
        value_name, count_name = judging.measured
        tables = {"per_class": pd.DataFrame(rows, columns=["name", count_name, value_name])}
        confusion = judging.confusion(judged.evidence, judged.samples, judged.frame)
        artifacts = log_artifacts(run_id, tables, confusion)
        # MLflow's classes for results have no annotations.
        return EvaluationResult(figures, artifacts, run_id)  # type: ignore[no-untyped-call]


def _predicted(task: Task, model: Any, frame: pd.DataFrame) -> list[Parts]:
    signature = getattr(getattr(model, "metadata", None), "signature", None)
    params = getattr(signature, "params", None) or ()
    # Average precision counts every box; what a model reports by itself are those it is sure of.
    everything = {"least_score": 0.0} if "least_score" in {param.name for param in params} else None
    column = _COLUMNS[task.name]
    found: list[Parts] = []
    for answer in answers_to(model, frame, everything):
        if not isinstance(answer, pd.DataFrame) or column not in answer:
            raise DataError(
                f"The model does not answer with a column {column!r}, as models for {task.name} "
                "that sft_mlflow made do."
            )
        found += [_parts(task, v, "answer", len(found) + n) for n, v in enumerate(answer[column])]
    return found


def _parts(task: Task, value: Any, what: str, row: int) -> Parts:
    try:
        parts = json.loads(value) if isinstance(value, str) else list(value)
    except (TypeError, ValueError):
        parts = None
    keys = _KEYS[task.name]
    if not isinstance(parts, list) or not all(
        isinstance(part, Mapping) and part.keys() >= set(keys) for part in parts
    ):
        raise DataError(
            f"row {row}: the {what} is no list of {_COLUMNS[task.name]}, each with "
            f"{', '.join(keys)}, nor JSON of one (docs/mlflow.md)."
        )
    return parts


def _classes(*images: Sequence[Parts]) -> tuple[str, ...]:
    return tuple(sorted({str(part["label"]) for side in images for one in side for part in one}))


def _boxes(found: Sequence[Parts], truth: Sequence[Parts]) -> _Judged:
    frame = Frame(_classes(found, truth), PixelSpec(1, "nearest"))
    samples = tuple(
        Sample(Path(str(row)), tuple(_box(part) for part in parts), "", "test")
        for row, parts in enumerate(truth)
    )
    judging = DETECTION.judging
    evidence = judging.evidence([_found(p, frame.classes) for p in found], samples, frame, 0)
    # The score from which boxes count in the confusion matrix; average precision takes them all.
    calibration = judging.calibrated(evidence, samples, frame)
    return _Judged(evidence, replace(frame, calibration=calibration), samples)


def _box(part: Mapping[str, Any]) -> Box:
    xmin, ymin, xmax, ymax = (float(part[name]) for name in _CORNERS)
    return Box(str(part["label"]), xmin, ymin, xmax, ymax)


def _found(parts: Parts, classes: Sequence[str]) -> Boxes:
    ordered = sorted(parts, key=lambda part: -float(part.get("score", 1.0)))
    boxes = [_box(part) for part in ordered]
    return Boxes(
        np.array([(b.xmin, b.ymin, b.xmax, b.ymax) for b in boxes], np.float64).reshape(-1, 4),
        np.array([classes.index(b.label) for b in boxes], np.int64),
        np.array([float(part.get("score", 1.0)) for part in ordered], np.float64),
    )


def _masks(found: Sequence[Parts], truth: Sequence[Parts]) -> _Judged:
    frame = Frame(_classes(found, truth), PixelSpec(1, "nearest"))
    counts: list[Counts] = []
    for row, (said, true) in enumerate(zip(found, truth, strict=True)):
        if not true:
            # All of it is ignored.
            counts.append(np.zeros((len(frame.classes),) * 2, np.int64))
            continue
        answer, mask = (indices_of(parts, frame.classes) for parts in (said, true))
        if (answer == IGNORED).any():
            raise DataError(f"row {row}: the answer leaves pixels without a class. Give each one.")
        if answer.shape != mask.shape:
            raise DataError(
                f"row {row}: the answer has {answer.shape[1]} x {answer.shape[0]} pixels and the "
                f"target {mask.shape[1]} x {mask.shape[0]}. Give masks of the size of the image."
            )
        counts.append(counted(answer, mask, len(frame.classes)))
    samples = tuple(Sample(Path(str(row)), "", "", "test") for row in range(len(truth)))
    return _Judged(np.stack(counts), frame, samples)
