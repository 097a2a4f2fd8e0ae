"""What the loop trains on: values at the cut where the trained part begins, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sft_mlflow.data.manifest import Sample
from sft_mlflow.reuse.chain import Chain
from sft_mlflow.tasks.base import Frame, Learning, Targets
from sft_mlflow.training.randomness import seed_of

# Of what is read for several batches at once. Values near the pixels are large.
READ_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Batch:
    """What the trained part is given, and what is true of the images, in the task's form."""

    values: tuple[Tensor, ...]
    targets: Targets


@dataclass(frozen=True)
class Shown:
    """What the trained part is given of images that are to be judged."""

    values: tuple[Tensor, ...]
    samples: Sequence[Sample]


class Batches(Protocol):
    """Where the loop's batches come from."""

    @property
    def steps(self) -> int:
        """Batches in one epoch of training."""

    def training(self, epoch: int) -> Iterator[Batch]:
        """The training images of that epoch, shuffled and changed as the recipe says."""

    def validation(self) -> Iterator[Shown]:
        """The validation images in order."""

    @property
    def validated(self) -> Sequence[Sample]:
        """The validation images, in the same order."""


@dataclass(frozen=True)
class ChainBatches:
    """Batches from two chains; whether their values are read or computed, only those know.

    point: of the road, where the trained part begins; views: of the training images, which the
    epochs take in turn.
    """

    train: Chain
    valid: Chain
    learning: Learning
    frame: Frame
    point: int
    views: Sequence[int]
    batch_size: int
    seed: int

    @property
    def steps(self) -> int:
        """Batches in one epoch; a rest too small for BatchNorm (one image) is left out."""
        full, rest = divmod(len(self.train.samples), self.batch_size)
        return full + (rest > 1 or full == 0)

    def training(self, epoch: int) -> Iterator[Batch]:
        """Shuffled by (seed, epoch), the images in the view of the epoch."""
        view = self.views[(epoch - 1) % len(self.views)]
        generator = torch.Generator().manual_seed(seed_of(self.seed, "order", epoch))
        order = torch.randperm(len(self.train.samples), generator=generator).numpy()
        moved = partial(self.train.moved, view=view)
        batches = [order[i * self.batch_size :][: self.batch_size] for i in range(self.steps)]
        # Decoding, the store and frozen stages take many images at once for less than a few.
        # Whoever stops waits for one read.
        begun, batches_a_read = 0, 1
        while begun < len(batches):
            read = batches[begun : begun + batches_a_read]
            values = self.train.inputs(np.concatenate(read), view, self.point)
            # Epochs can be long.
            self.valid.note_use()
            # Parts of what was read, not copies of it.
            parts = zip(*(some.split([*map(len, read)]) for some in values), strict=True)
            for rows, of_rows in zip(read, parts, strict=True):
                samples = [self.train.samples[row] for row in rows]
                yield Batch(of_rows, self.learning.targets(samples, self.frame, moved))
            begun += len(read)
            of_a_batch = sum(some.nbytes for some in values) / len(read)
            fitting = min(self.frame.pixels.together // self.batch_size, READ_BYTES // of_a_batch)
            batches_a_read = max(1, int(fitting))
        # Another epoch, or another trial, may take the same view.
        self.train.flush()

    @property
    def validated(self) -> Sequence[Sample]:
        """The validation images."""
        return self.valid.samples

    def validation(self) -> Iterator[Shown]:
        """In order, as they are."""
        rows = np.arange(len(self.valid.samples))
        together = self.frame.pixels.together
        for start in range(0, len(rows), together):
            some = rows[start : start + together]
            yield Shown(
                self.valid.inputs(some, 0, self.point), [self.valid.samples[row] for row in some]
            )
