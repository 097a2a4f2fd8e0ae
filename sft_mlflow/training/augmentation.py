"""Random changes of training images that keep their class, and of boxes and masks with them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from sft_mlflow.data.masks import IGNORED
from sft_mlflow.training.randomness import keyed
from sft_mlflow.training.recipe import Augmentation
from sft_mlflow.training.threads import one_thread

# Small, because few images and few epochs need little of it; no mirroring, since digits, letters
# and left hands do not survive it.
_LIGHT = v2.Compose(
    [
        # What comes into view from beyond the edge is of no class.
        v2.RandomAffine(
            degrees=8,
            translate=(0.06, 0.06),
            scale=(0.9, 1.1),
            fill={Tensor: 0, tv_tensors.Mask: IGNORED},
        ),
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
    _, height, width, _ = pixels.shape
    transform = _transform(policy, height, width)
    images = pixels.permute(0, 3, 1, 2).contiguous()
    changed = []
    with one_thread():
        for image, name in zip(images, names, strict=True):
            with keyed(*key, name):
                changed.append(transform(image))
        # As unchanged pixels lie in memory, so that networks find channels last.
        return torch.stack(changed).permute(0, 2, 3, 1).contiguous()


def moved(
    truth: tv_tensors.TVTensor, policy: Augmentation, key: tuple[int, ...], name: str
) -> tv_tensors.TVTensor:
    """A mask (1, H, W) or boxes, moved as `augment` moves the image of that name by that key.

    torchvision's transforms draw the same, whatever they are given of one size.
    """
    if policy == "none":
        return truth
    height, width = v2.functional.get_size(truth)
    with one_thread(), keyed(*key, name):
        changed: tv_tensors.TVTensor = _transform(policy, height, width)(truth)
    return changed


def _transform(policy: Augmentation, height: int, width: int) -> v2.Transform:
    if policy == "light":
        return _LIGHT
    shape = width / height
    return v2.Compose(
        [
            v2.RandomResizedCrop(
                (height, width),
                scale=(0.5, 1.0),
                ratio=(3 / 4 * shape, 4 / 3 * shape),
                antialias=True,
            ),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
        ]
    )
