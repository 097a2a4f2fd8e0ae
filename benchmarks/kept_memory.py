"""Images/s where freed memory stays with the process, and where glibc gives it back.

Each turn of each is a process of its own, since what a process was told it keeps to.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

from benchmarks import machine

# What is done, by which network, and in batches of how many images.
WORKS = (
    ("forward", "resnet50", 64),
    ("forward", "tf_efficientnet_lite0", 64),
    ("forward and backward", "resnet50", 16),
    ("forward and backward", "resnet50", 32),
    ("forward and backward", "tf_efficientnet_lite0", 32),
)
SIZE = 224
ARMS, STEPS = ("given back", "kept"), 5


def main() -> None:
    parser = argparse.ArgumentParser(prog="kept_memory", description=__doc__.splitlines()[0])
    parser.add_argument("--arm", choices=ARMS)
    parser.add_argument("--turns", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    options = parser.parse_args()
    if options.arm:
        print(json.dumps(rates(options.arm, options.threads)))
        return
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for _ in range(options.turns):
        for arm in ARMS:
            command = [sys.executable, "-m", "benchmarks.kept_memory", "--arm", arm]
            command += ["--threads", str(options.threads)]
            # What is said there of memory would stand.
            said = ("MALLOC_", "GLIBC_TUNABLES")
            environment = {k: v for k, v in os.environ.items() if not k.startswith(said)}
            environment |= machine.threads(options.threads)
            told = subprocess.run(command, env=environment, check=True, capture_output=True)
            found[arm].append(json.loads(told.stdout))
    print("| work | given back | kept |\n|---|---|---|")
    for work in found["kept"][0]:
        plain, kept = (statistics.median(turn[work] for turn in found[arm]) for arm in ARMS)
        print(f"| {work} | {plain:.1f} | {kept:.1f} |")


def rates(arm: str, threads: int) -> dict[str, float]:
    """Images/s of each work, and MB of memory at most in the end."""
    from sft_mlflow import runtime

    if arm == "kept":
        runtime.tune()

    import resource

    import timm
    import torch
    from torch import Tensor, nn

    torch.set_num_threads(threads)

    def forward(model: nn.Module, images: Tensor, precision: torch.dtype) -> Tensor:
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            return model(images).float()

    @torch.no_grad()
    def only_forward(model: nn.Module, images: Tensor, precision: torch.dtype) -> None:
        forward(model, images, precision)

    def backward_too(model: nn.Module, images: Tensor, precision: torch.dtype) -> None:
        forward(model, images, precision).square().mean().backward()
        model.zero_grad()

    steps = {"forward": only_forward, "forward and backward": backward_too}
    found = {}
    for what, name, count in WORKS:
        model = timm.create_model(name, num_classes=10).eval()
        model.to(memory_format=torch.channels_last)
        images = torch.randn(count, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
        for precision in (torch.float32, torch.bfloat16):
            seconds = seconds_of(partial(steps[what], model, images, precision))
            kind = str(precision).removeprefix("torch.")
            work = f"{name}, {what}, batches of {count}, {kind}"
            found[work] = count / seconds
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {**found, "MB of memory at most": peak}


def seconds_of(step: Callable[[], None]) -> float:
    """Of the median step."""
    taken = []
    for _ in range(STEPS + 1):
        begun = time.perf_counter()
        step()
        taken.append(time.perf_counter() - begun)
    # The first one chooses kernels.
    return statistics.median(taken[1:])


if __name__ == "__main__":
    main()
