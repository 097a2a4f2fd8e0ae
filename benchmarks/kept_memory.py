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

from benchmarks import machine

# Network, side in pixels, images a batch.
FORWARD = (("resnet50", 224, 64), ("tf_efficientnet_lite0", 224, 64))
TRAINING = (("resnet50", 224, 16), ("resnet50", 224, 32), ("tf_efficientnet_lite0", 224, 32))
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
            environment = os.environ | machine.threads(options.threads)
            told = subprocess.run(command, env=environment, check=True, capture_output=True)
            found[arm].append(json.loads(told.stdout))
    print("| work | given back | kept |\n|---|---|---|")
    for work in found["kept"][0]:
        plain, kept = (statistics.median(turn[work] for turn in found[arm]) for arm in ARMS)
        print(f"| {work} | {plain:.1f} | {kept:.1f} |")


def rates(arm: str, threads: int) -> dict[str, float]:
    """By what was done: the median of its steps but the first, and MB at most in the end."""
    from sft_mlflow import runtime

    if arm == "kept":
        runtime.tune()

    import resource

    import timm
    import torch

    torch.set_num_threads(threads)
    found = {}
    for trains, works in ((False, FORWARD), (True, TRAINING)):
        for name, size, count in works:
            model = timm.create_model(name, num_classes=10).eval()
            model.to(memory_format=torch.channels_last)
            images = torch.randn(count, 3, size, size).to(memory_format=torch.channels_last)
            for precision in (torch.float32, torch.bfloat16):

                def step() -> None:
                    with torch.autocast("cpu", precision, enabled=precision != torch.float32):  # noqa: B023
                        outputs = model(images)  # noqa: B023
                    if trains:  # noqa: B023
                        outputs.float().square().mean().backward()
                        model.zero_grad()  # noqa: B023

                what = f"{name}, {'training' if trains else 'forward'}, batches of {count}"
                with torch.set_grad_enabled(trains):
                    found[f"{what}, {str(precision)[6:]}"] = count / seconds_of(step)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {**found, "MB of memory at most": peak}


def seconds_of(step: Callable[[], None]) -> float:
    taken = []
    for _ in range(STEPS + 1):
        begun = time.perf_counter()
        step()
        taken.append(time.perf_counter() - begun)
    # The first one chooses kernels.
    return statistics.median(taken[1:])


if __name__ == "__main__":
    main()
