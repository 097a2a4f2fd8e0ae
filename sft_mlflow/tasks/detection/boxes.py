"""Boxes of one image with their classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sft_mlflow.data.manifest import Sample
from sft_mlflow.data.truth import Box


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes (N, 4) of one image as xyxy in its own pixels, class indices (N,), scores (N,).

    Those that are found come by falling score; of true boxes all scores are 1.
    """

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.boxes)

    def above(self, score: float) -> Boxes:
        """Those of at least that score."""
        kept = self.scores >= score
        return Boxes(self.boxes[kept], self.labels[kept], self.scores[kept])


def objects_in(sample: Sample) -> tuple[Box, ...]:
    """What is true of an image of this task."""
    assert isinstance(sample.truth, tuple)
    return sample.truth


def true_boxes(sample: Sample, classes: Sequence[str]) -> Boxes:
    """The boxes that are true of the image."""
    objects = objects_in(sample)
    found = [(box.xmin, box.ymin, box.xmax, box.ymax) for box in objects]
    return Boxes(
        np.array(found, np.float64).reshape(-1, 4),
        np.array([classes.index(box.label) for box in objects], np.int64),
        np.ones(len(found)),
    )
