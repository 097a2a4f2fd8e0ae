"""How a network comes to name the class of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from sft_mlflow.data.manifest import IMBALANCED, Manifest, Sample, imbalance
from sft_mlflow.tasks.base import Frame, LossSettings, Moved
from sft_mlflow.tasks.imbalance import weights


class ClassLearning:
    """A linear head on the pooled features, trained with cross entropy."""

    is_linear = True
    takes_settings = True
    label_smoothing = 0.1

    def class_weights(self, manifest: Manifest) -> tuple[float, ...]:
        """By the number of training images of each class."""
        return weights(manifest.counts("train").values())

    def are_imbalanced(self, counts: Mapping[str, int]) -> bool:
        """Whether the largest class has three times the smallest."""
        return imbalance(counts) >= IMBALANCED

    def targets(self, samples: Sequence[Sample], frame: Frame, moved: Moved) -> Tensor:
        """Class indices (B,) int64; moving an image keeps its class."""
        del moved
        return torch.from_numpy(indices(samples, frame.classes))

    def loss(
        self, head: nn.Module, outputs: Tensor, targets: Tensor, settings: LossSettings
    ) -> Tensor:
        """Cross entropy with the recipe's label smoothing and class weights."""
        del head
        return F.cross_entropy(
            outputs.float(),
            targets.to(outputs.device),
            weight=settings.class_weights,
            label_smoothing=settings.label_smoothing,
        )


def indices(samples: Sequence[Sample], classes: Sequence[str]) -> NDArray[np.int64]:
    """The class indices (N,) of the samples."""
    index = {name: number for number, name in enumerate(classes)}
    return np.array([index[sample.label] for sample in samples], np.int64)
