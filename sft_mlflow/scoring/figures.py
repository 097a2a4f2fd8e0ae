"""Figures of a scored output whose images have labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sft_mlflow.scoring.score import read_columns
from sft_mlflow.tasks.classification import metrics


@dataclass(frozen=True, slots=True)
class LabelledFigures:
    """How the model did on the images that have a label and could be read.

    images: those that the figures are over; unknown: those whose label is none of the model's
    classes, which the figures leave out.
    """

    images: int
    unknown: int
    accuracy: float
    macro_f1: float
    ece: float


def labelled_figures(output: Path, classes: Sequence[str]) -> LabelledFigures | None:
    """Figures of a finished output, or None where no readable image has a label of the model's.

    The same as a study's `test/...` ones where the images are its test side. Takes 24 bytes of
    memory an image, however many classes there are.
    """
    names = [f"probability_{name}" for name in classes]
    index = {name: number for number, name in enumerate(classes)}
    parts = []
    unknown = 0
    for batch in read_columns(output, ["label", *names]):
        judged = batch.drop_null()
        targets = np.array([index.get(name, -1) for name in judged["label"].to_pylist()], np.int64)
        known = targets >= 0
        unknown += int((~known).sum())
        if known.any():
            found = np.column_stack([judged[name].to_numpy() for name in names])[known]
            parts.append((found.argmax(axis=1), found.max(axis=1), targets[known]))
    if not parts:
        return None
    predicted, confidence, truth = map(np.concatenate, zip(*parts, strict=True))
    figures = metrics.summary_of_answers(predicted, confidence, truth)
    return LabelledFigures(images=len(truth), unknown=unknown, **figures)
