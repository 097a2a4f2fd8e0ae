"""Image classification: one class for each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sft_mlflow.data.manifest import IMBALANCED, imbalance
from sft_mlflow.tasks.base import LossSettings
from sft_mlflow.tasks.classification import calibration, metrics


class Classification:
    """The task `classification`: outputs are logits (B, classes), targets class indices (B,)."""

    name = "classification"
    metrics = ("accuracy", "macro_f1")

    def objective(self, class_counts: Mapping[str, int]) -> tuple[str, str]:
        """Accuracy, or macro F1 where the classes are imbalanced."""
        ratio = imbalance(class_counts)
        if ratio >= IMBALANCED:
            return "macro_f1", f"the largest class has {ratio:.1f}x the smallest"
        return "accuracy", "the classes are balanced"

    def loss(self, outputs: Tensor, targets: Tensor, settings: LossSettings) -> Tensor:
        """Cross entropy with the recipe's label smoothing and class weights."""
        return F.cross_entropy(
            outputs.float(),
            targets,
            weight=settings.class_weights,
            label_smoothing=settings.label_smoothing,
        )

    def evaluate(
        self, outputs: NDArray[np.float32], targets: NDArray[np.int64], classes: Sequence[str]
    ) -> dict[str, float]:
        """`loss`, `accuracy`, `macro_f1` and `ece` of logits (N, classes)."""
        probabilities = calibration.softmax(outputs)
        return {
            "loss": metrics.negative_log_likelihood(probabilities, targets),
            **metrics.summary(probabilities, targets),
        }
