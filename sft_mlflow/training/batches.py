"""What the loop trains on: values at the cut where the trained part begins, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sft_mlflow.reuse.chain import Chain, Rows
from sft_mlflow.training.randomness import seed_of

VALIDATION_BATCH = 64


@dataclass(frozen=True)
class Batch:
    """What the trained part is given, and the true classes (B,) int64."""

    values: tuple[Tensor, ...]
    targets: Tensor


class Batches(Protocol):
    """Where the loop's batches come from."""

    @property
    def steps(self) -> int:
        """Batches in one epoch of training."""

    def training(self, epoch: int) -> Iterator[Batch]:
        """The training images of that epoch, shuffled and changed as the recipe says."""

    def validation(self) -> Iterator[Batch]:
        """The validation images in order."""

    @property
    def truth(self) -> NDArray[np.int64]:
        """The true classes of the validation images, in the same order."""


@dataclass(frozen=True)
class ChainBatches:
    """Batches from two chains; whether their values are read or computed, only those know.

    point: of the road, where the trained part begins; views: of the training images, which the
    epochs take in turn.
    """

    train: Chain
    valid: Chain
    point: int
    views: Sequence[int]
    batch_size: int
    seed: int

    @property
    def steps(self) -> int:
        """Batches in one epoch; a rest too small for BatchNorm (one image) is left out."""
        full, rest = divmod(len(self.train.images.targets), self.batch_size)
        return full + (rest > 1 or full == 0)

    def training(self, epoch: int) -> Iterator[Batch]:
        """Shuffled by (seed, epoch), the images in the view of the epoch."""
        view = self.views[(epoch - 1) % len(self.views)]
        generator = torch.Generator().manual_seed(seed_of(self.seed, "order", epoch))
        order = torch.randperm(len(self.train.images.targets), generator=generator).numpy()
        for step in range(self.steps):
            rows = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield self._batch(self.train, rows, view)
        # Another epoch, or another trial, may take the same view.
        self.train.flush()

    def validation(self) -> Iterator[Batch]:
        """In order, as they are."""
        rows = np.arange(len(self.valid.images.targets))
        for start in range(0, len(rows), VALIDATION_BATCH):
            yield self._batch(self.valid, rows[start : start + VALIDATION_BATCH], 0)

    @property
    def truth(self) -> NDArray[np.int64]:
        """The true classes of the validation images."""
        return self.valid.images.targets

    def _batch(self, chain: Chain, rows: Rows, view: int) -> Batch:
        values = chain.inputs(rows, view, self.point)
        return Batch(values, torch.from_numpy(chain.images.targets[rows]).to(values[0].device))
