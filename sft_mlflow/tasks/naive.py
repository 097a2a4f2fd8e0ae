"""Whether a model is better than one that knows nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sft_mlflow.data.manifest import Sample
from sft_mlflow.tasks.base import Frame, Judging

# Figures that differ by less are the same on paper.
TOLERANCE = 1e-9


class Compared(NamedTuple):
    """A figure beside that of a model that knows nothing, and what such a one would do."""

    found: float
    naive: float
    who: str

    @property
    def knows(self) -> bool:
        """Whether the model knows anything."""
        return self.found > self.naive + TOLERANCE


def compared(
    judging: Judging, metric: str, found: float, samples: Sequence[Sample], frame: Frame
) -> Compared:
    """That figure of a model on the samples beside what knowing nothing gets there."""
    return Compared(found, *judging.naive(metric, samples, frame))
