"""The recipe: everything that decides the weights except the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Augmentation = Literal["none", "light", "natural"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Recipe:
    """How one trial is trained.

    depth: the last stages that train with the head; lr: peak learning rate of the head, None for a
    probe; views: changed versions of each training image that the epochs take in turn; mixup:
    alpha of the Beta distribution that blends the images of a batch, 0 for none; head_start: fitted
    to the frozen body, or drawn; warmup: share of the steps over which the learning rate rises;
    averaging: share of the steps that the average of the weights reaches back; clip: largest norm
    of the gradient.
    """

    source: str
    depth: int
    lr: float | None
    epochs: int
    batch_size: int
    image_size: int
    optimizer: Literal["adamw", "sgd"]
    weight_decay: float
    layer_decay: float
    label_smoothing: float
    class_weights: tuple[float, ...] | None
    augmentation: Augmentation
    views: int
    mixup: float
    head_start: Literal["probe", "random"]
    patience: int
    precision: Precision
    metric: str
    seed: int
    averaging: float = 0.0
    warmup: float = 0.1
    momentum: float = 0.9
    clip: float = 1.0

    @property
    def is_probe(self) -> bool:
        """Whether the probe alone is the trial: there is nothing left to train."""
        return self.depth == 0 and self.head_start == "probe"

    @property
    def batch_statistics(self) -> bool:
        """Whether BatchNorm of the stages that train counts anew, as in plain fine-tuning.

        A probe was fitted to features of the source's statistics; with those of small batches it
        would begin far off (docs/performance.md has the figures). A head alone keeps them too.
        """
        return self.head_start == "random" and self.depth > 0

    @property
    def view_numbers(self) -> range:
        """The views of the training images that its epochs take in turn; 0 are those unchanged."""
        if self.augmentation == "none":
            return range(1)
        return range(1, min(self.views, self.epochs) + 1)
