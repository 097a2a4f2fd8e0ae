"""What a head that finds boxes is told, says and does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

# Average precision counts what is found with little certainty too; people and programs choose
# their own threshold of what they are shown.
LEAST_SCORE = 0.05


@dataclass(frozen=True)
class Objects:
    """What is in one image: boxes (N, 4) as xyxy in pixels of the canvas, class indices (N,)."""

    boxes: Tensor
    labels: Tensor

    def as_target(self, device: torch.device, first_label: int = 0) -> dict[str, Tensor]:
        """What torchvision's detectors want to know. first_label: theirs for class 0."""
        labels = self.labels.to(device) + first_label
        return {"boxes": self.boxes.to(device).float(), "labels": labels}


@dataclass(frozen=True)
class Detections:
    """What is found in one image, by falling score."""

    boxes: Tensor
    labels: Tensor
    scores: Tensor

    @classmethod
    def of(cls, answer: Mapping[str, Tensor], first_label: int = 0) -> Detections:
        """That of an answer of torchvision's. first_label: theirs for class 0."""
        return cls(answer["boxes"], answer["labels"] - first_label, answer["scores"])


@runtime_checkable
class BoxHead(Protocol):
    """Beside its forward pass."""

    def loss(self, outputs: Any, objects: Sequence[Objects], canvas: tuple[int, int]) -> Tensor:
        """How far the outputs for a batch are from what is there, a scalar.

        objects: on whatever device; canvas: height and width in pixels.
        """

    def detect(self, outputs: Any, canvas: tuple[int, int]) -> list[Detections]:
        """The boxes of each image after non-maximum suppression, in pixels of the canvas."""
