"""Training speed in channels-last and in contiguous memory, turn by turn in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import timm
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet50

from sft_mlflow import runtime

BATCH_SIZE, SIZE, TURNS = 16, 128, 7
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "EfficientNet-Lite0": lambda: timm.create_model("tf_efficientnet_lite0", num_classes=10),
    "ResNet-50": lambda: resnet50(num_classes=10),
}


def main() -> None:
    # Memory is kept as the command line keeps it.
    runtime.tune()
    print("| network | precision | contiguous, images/s | channels-last, images/s |")
    print("|---|---|---|---|")
    for name, build in NETWORKS.items():
        for bfloat16 in (False, True):
            rates = measure(build, bfloat16)
            precision = "bfloat16" if bfloat16 else "float32"
            plain, last = (
                rates[layout] for layout in (torch.contiguous_format, torch.channels_last)
            )
            print(f"| {name} | {precision} | {plain:.1f} | {last:.1f} |", flush=True)


def measure(build: Callable[[], nn.Module], bfloat16: bool) -> dict[torch.memory_format, float]:
    """Images a second by layout: the median of the turns but the first, which chooses kernels."""
    layouts = (torch.contiguous_format, torch.channels_last)
    # BatchNorm keeps the source's statistics, as in the product's training.
    networks = {layout: build().eval().to(memory_format=layout) for layout in layouts}
    seconds: dict[torch.memory_format, list[float]] = {layout: [] for layout in layouts}
    images, targets = torch.randn(BATCH_SIZE, 3, SIZE, SIZE), torch.arange(BATCH_SIZE) % 10
    for _ in range(TURNS):
        for layout, network in networks.items():
            batch = images.contiguous(memory_format=layout)
            begun = time.perf_counter()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
                outputs = network(batch)
            F.cross_entropy(outputs.float(), targets).backward()
            seconds[layout].append(time.perf_counter() - begun)
    return {layout: BATCH_SIZE / statistics.median(s[1:]) for layout, s in seconds.items()}


if __name__ == "__main__":
    main()
