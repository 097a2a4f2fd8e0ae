"""What every task answers to the training loop.

Prediction, calibration and pictures are still asked of classification by name in the layers above;
the second task will bring them under this protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Task(Protocol):
    """One kind of question that a network is fine-tuned to answer.

    `outputs` are what the network's head gives for a batch, `targets` what is true of it.
    """

    @property
    def name(self) -> str:
        """Word of the command line, as in `task=classification`."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that can be an objective, each the better the larger."""

    def objective(self, class_counts: Mapping[str, int]) -> tuple[str, str]:
        """Name of the metric to choose trials by, and why, for these training counts."""

    def loss(self, outputs: Tensor, targets: Tensor, settings: LossSettings) -> Tensor:
        """Mean loss of the batch, a scalar that can be differentiated."""

    def evaluate(
        self, outputs: NDArray[np.float32], targets: NDArray[np.int64], classes: Sequence[str]
    ) -> dict[str, float]:
        """Every metric by its name, `loss` included, over a whole side of the split."""


class LossSettings(Protocol):
    """What of the recipe a loss reads."""

    @property
    def label_smoothing(self) -> float:
        """Share of the target that is spread over all classes, in [0, 1)."""

    @property
    def class_weights(self) -> Tensor | None:
        """(classes,) float32, or None where all count the same."""
