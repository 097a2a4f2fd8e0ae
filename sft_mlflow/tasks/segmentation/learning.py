"""How a network comes to name the class of each pixel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import tv_tensors

from sft_mlflow.data.canvas import lay_mask
from sft_mlflow.data.manifest import Manifest, Sample
from sft_mlflow.data.masks import IGNORED
from sft_mlflow.data.ordered import ordered_map
from sft_mlflow.tasks import on_canvas
from sft_mlflow.tasks.base import Frame, LossSettings, Moved
from sft_mlflow.tasks.imbalance import weights
from sft_mlflow.tasks.segmentation.truth import true_mask, true_pixels

# Enough to tell how often classes are seen.
_COUNTED_MASKS = 500


class MaskLearning:
    """Cross entropy of every pixel."""

    is_linear = False
    takes_settings = True
    label_smoothing = 0.0

    def class_weights(self, manifest: Manifest) -> tuple[float, ...]:
        """By the number of pixels of each class in at most 500 training masks."""
        side = manifest.side("train")
        # From all over the side: neighbours show the same street.
        samples = side[:: math.ceil(len(side) / _COUNTED_MASKS)]
        found = true_pixels(samples, manifest.classes, manifest.mask_values).tolist()
        # What none of these masks shows is too rare to be weighed by what was seen of it.
        known = iter(weights([count for count in found if count]))
        return tuple(next(known) if count else 1.0 for count in found)

    def are_imbalanced(self, counts: Mapping[str, int]) -> bool:
        """Always: what matters are pixels, and of a road there are more than of a sign."""
        del counts
        return True

    def targets(self, samples: Sequence[Sample], frame: Frame, moved: Moved) -> Tensor:
        """Class indices (B, H, W) uint8 on the canvas."""
        canvas = on_canvas.canvas_of(frame.pixels)

        def laid(sample: Sample) -> NDArray[np.uint8]:
            return lay_mask(true_mask(sample, frame.classes, frame.mask_values), canvas)

        def moved_mask(mask: NDArray[np.uint8], digest: str) -> Tensor:
            found: Tensor = moved(tv_tensors.Mask(torch.from_numpy(mask)[None]), digest)
            return found.as_subclass(Tensor)[0]

        # Decoded by several threads, but moved by one: the draws are of a global generator.
        masks = ordered_map(laid, samples, ahead=len(samples))
        return torch.stack(
            [moved_mask(mask, sample.digest) for mask, sample in zip(masks, samples, strict=True)]
        )

    def loss(
        self, head: nn.Module, outputs: Tensor, targets: Tensor, settings: LossSettings
    ) -> Tensor:
        """Cross entropy of the pixels that count, at the size of the canvas."""
        del head
        truth = targets.to(outputs.device).long()
        logits = F.interpolate(
            outputs.float(), truth.shape[1:], mode="bilinear", align_corners=False
        )
        if not (truth != IGNORED).any():
            # The mean over no pixels is not a number.
            return logits.sum() * 0
        return F.cross_entropy(
            logits,
            truth,
            weight=settings.class_weights,
            ignore_index=IGNORED,
            label_smoothing=settings.label_smoothing,
        )
