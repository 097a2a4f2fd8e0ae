"""The product's own command, once for each batch size and learning rate.

A study of it searches depths and learning rates at one batch size, and its sampler would not take
every pair; with one learning rate it takes each depth once. So this arm starts six processes and
fits six probes that one study would start and fit once; all of that is in its time.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from pathlib import Path

from benchmarks import machine
from benchmarks.nautilus.workload import BATCH_SIZES, BLOCKS, EPOCHS, RATES, SIZE, Workload


def run(workload: Workload, folder: Path) -> dict[str, object]:
    return run_with(workload, folder, [])


def run_with(workload: Workload, folder: Path, options: list[str]) -> dict[str, object]:
    begun = time.perf_counter()
    environment = os.environ | machine.product(folder)
    printed = []
    for batch_size, rate in itertools.product(BATCH_SIZES, RATES):
        command = [
            machine.PRODUCT,
            "finetune",
            f"--data={workload.images}",
            "--source=torchvision://resnet50/random",
            f"--depths={','.join(BLOCKS)}",
            f"--trials={len(BLOCKS)}",
            f"--lr-min={rate}",
            f"--lr-max={rate}",
            f"--batch-size={batch_size}",
            f"--epochs={EPOCHS}",
            f"--patience={EPOCHS}",
            f"--image-size={SIZE}",
            "--augment=none",
            "--head-start=random",
            "--precision=bfloat16",
            f"--study=batch-{batch_size}-rate-{rate}",
            *options,
        ]
        ended = subprocess.run(
            command, cwd=folder, env=environment, check=True, capture_output=True, text=True
        )
        printed.append(ended.stdout)
    seconds = time.perf_counter() - begun
    (folder / "printed.txt").write_text("\n".join(printed))
    return {"seconds": seconds, "commands": len(printed)}
