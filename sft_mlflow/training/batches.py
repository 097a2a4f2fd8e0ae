"""The road of an image: file, pixels, stage 1 … stage D. The loop does not know where it starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sft_mlflow.sources.network import normalise
from sft_mlflow.sources.source_model import Preprocessing
from sft_mlflow.training.augmentation import augment
from sft_mlflow.training.precision import Arithmetic
from sft_mlflow.training.randomness import seed_of
from sft_mlflow.training.recipe import Augmentation

VALIDATION_BATCH = 64


@dataclass(frozen=True)
class Batch:
    """Values at the cut where the trained part begins, and the true classes (B,) int64."""

    values: Tensor
    targets: Tensor


class Batches(Protocol):
    """Where the loop's batches come from."""

    @property
    def steps(self) -> int:
        """Batches in one epoch of training."""

    def training(self, epoch: int) -> Iterator[Batch]:
        """The training images of that epoch, shuffled and augmented as the recipe says."""

    def validation(self) -> Iterator[Batch]:
        """The validation images in order."""


@dataclass(frozen=True)
class Side:
    """One side of the split as pixels (N, S, S, 3) uint8 and class indices (N,) int64."""

    pixels: NDArray[np.uint8]
    targets: NDArray[np.int64]


@dataclass(frozen=True)
class LiveBatches:
    """Batches computed afresh from pixels, the frozen stages included."""

    train: Side
    valid: Side
    prefix: nn.Module
    preprocessing: Preprocessing
    augmentation: Augmentation
    batch_size: int
    seed: int
    device: torch.device
    arithmetic: Arithmetic

    @property
    def steps(self) -> int:
        """Batches in one epoch; a rest too small for BatchNorm (one image) is left out."""
        full, rest = divmod(len(self.train.targets), self.batch_size)
        return full + (rest > 1 or full == 0)

    def training(self, epoch: int) -> Iterator[Batch]:
        """Shuffled by (seed, epoch) and augmented by (seed, epoch, image)."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, "order", epoch))
        order = torch.randperm(len(self.train.targets), generator=generator).numpy()
        for step in range(self.steps):
            rows = np.sort(order[step * self.batch_size : (step + 1) * self.batch_size])
            pixels = torch.from_numpy(self.train.pixels[rows])
            changed = augment(pixels, self.augmentation, (self.seed, epoch), rows.tolist())
            with self.arithmetic.autocast():
                batch = self._batch(changed, self.train.targets[rows])
            yield batch

    def validation(self) -> Iterator[Batch]:
        """In order, as they are, in float32 as the model will be used."""
        for start in range(0, len(self.valid.targets), VALIDATION_BATCH):
            rows = slice(start, start + VALIDATION_BATCH)
            # Copied, because torch wants memory that may be written and the table is read-only.
            pixels = torch.from_numpy(self.valid.pixels[rows].copy())
            yield self._batch(pixels, self.valid.targets[rows])

    def _batch(self, pixels: Tensor, targets: NDArray[np.int64]) -> Batch:
        images = normalise(pixels.to(self.device), self.preprocessing.mean, self.preprocessing.std)
        with torch.no_grad():
            values = self.prefix(images)
        return Batch(values, torch.from_numpy(targets).to(self.device))
