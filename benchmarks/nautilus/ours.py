"""The product's own command: one study of every combination, each to its last epoch."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from benchmarks import machine
from benchmarks.nautilus.workload import BATCH_SIZES, BLOCKS, EPOCHS, RATES, SIZE, Workload


def run(workload: Workload, folder: Path) -> dict[str, object]:
    return run_with(workload, folder, [])


def run_with(workload: Workload, folder: Path, options: list[str]) -> dict[str, object]:
    environment = os.environ | machine.product(folder)
    command = [
        machine.PRODUCT,
        "finetune",
        f"--data={workload.images}",
        "--source=torchvision://resnet50/random",
        f"--depths={','.join(BLOCKS)}",
        f"--batch-size={','.join(map(str, BATCH_SIZES))}",
        f"--lr={','.join(map(str, RATES))}",
        f"--epochs={EPOCHS}",
        f"--patience={EPOCHS}",
        "--prune=no",
        f"--image-size={SIZE}",
        "--augment=none",
        "--head-start=random",
        "--precision=bfloat16",
        "--study=nautilus",
        *options,
    ]
    begun = time.perf_counter()
    with (folder / "printed.txt").open("w") as printed:
        subprocess.run(
            command, cwd=folder, env=environment, check=True, stdout=printed, stderr=printed
        )
    return {"seconds": time.perf_counter() - begun}
