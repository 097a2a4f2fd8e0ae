"""What folding BatchNorm into convolutions brings where nothing trains: images/s, forward."""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from sft_mlflow import runtime
from sft_mlflow.sources.folding import folded
from sft_mlflow.sources.network import network_from
from sft_mlflow.sources.uri import resolve

# Side in pixels and images a batch.
NETWORKS = {
    "torchvision://resnet50/random": (224, 16),
    "embedded://efficientnet_lite0": (128, 64),
}
TURNS = 7


def main() -> None:
    # Memory is kept as the command line keeps it.
    runtime.tune()
    parser = argparse.ArgumentParser(prog="folding", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    torch.set_num_threads(parser.parse_args().threads)
    print("| network | precision | as it is | folded |\n|---|---|---|---|")
    for uri, (size, count) in NETWORKS.items():
        network = network_from(resolve(uri), classes=10)
        network.model.eval().to(memory_format=torch.channels_last)
        whole = network.suffix(network.full_depth)
        images = torch.randn(count, 3, size, size).to(memory_format=torch.channels_last)
        for precision in (torch.float32, torch.bfloat16):
            plain, faster = rates([whole, folded(whole)], images, precision)
            name = str(precision).removeprefix("torch.")
            print(f"| {uri} | {name} | {plain:.0f} | {faster:.0f} |", flush=True)


@torch.no_grad()
def rates(
    functions: list[Callable[[Tensor], Tensor]], images: Tensor, precision: torch.dtype
) -> list[float]:
    """Images a second of each, turn by turn, so that a machine that slows down slows both."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(TURNS):
        for function, found in zip(functions, seconds, strict=True):
            begun = time.perf_counter()
            with torch.autocast("cpu", precision, enabled=precision != torch.float32):
                function(images)
            found.append(time.perf_counter() - begun)
    # The first turn prepares kernels.
    return [len(images) / statistics.median(found[1:]) for found in seconds]


if __name__ == "__main__":
    main()
