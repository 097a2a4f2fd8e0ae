"""Random changes of training images that keep their class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms import v2

from sft_mlflow.training.randomness import keyed
from sft_mlflow.training.recipe import Augmentation
from sft_mlflow.training.threads import one_thread

# Small, because few images and few epochs need little of it; no mirroring, since digits, letters
# and left hands do not survive it.
_LIGHT = v2.Compose(
    [
        v2.RandomAffine(degrees=8, translate=(0.06, 0.06), scale=(0.9, 1.1)),
        v2.ColorJitter(brightness=0.2, contrast=0.2),
    ]
)


def augment(
    pixels: Tensor, policy: Augmentation, key: tuple[int, ...], names: Sequence[str]
) -> Tensor:
    """The batch with each image changed by draws of its own.

    pixels: (B, H, W, 3) uint8; names: what identifies each image, so that its draws depend on
    (key, name) alone and not on the batch that it is in.
    """
    if policy == "none":
        return pixels
    transform = _LIGHT if policy == "light" else _natural(pixels.shape[1])
    images = pixels.permute(0, 3, 1, 2).contiguous()
    changed = []
    with one_thread():
        for image, name in zip(images, names, strict=True):
            with keyed(*key, name):
                changed.append(transform(image))
        return torch.stack(changed).permute(0, 2, 3, 1)


def _natural(size: int) -> v2.Transform:
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.5, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
        ]
    )
