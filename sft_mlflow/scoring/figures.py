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

    The same as a study's `test/...` ones where the images are its test side. Takes 8 bytes of
    memory an image and class.
    """
    names = [f"probability_{name}" for name in classes]
    table = read_columns(output, ["label", "prediction", *names])
    judged = table.drop_null()
    index = {name: number for number, name in enumerate(classes)}
    targets = np.array([index.get(name, -1) for name in judged["label"].to_pylist()], np.int64)
    known = targets >= 0
    if not known.any():
        return None
    probabilities = np.column_stack([judged[name].to_numpy() for name in names])
    return LabelledFigures(
        images=int(known.sum()),
        unknown=int((~known).sum()),
        **metrics.summary(probabilities[known], targets[known]),
    )
