"""The loop as users write it: float32, images decoded in every epoch."""

from __future__ import annotations

from pathlib import Path

from benchmarks.nautilus import loop
from benchmarks.nautilus.workload import Workload


def run(workload: Workload, folder: Path) -> dict[str, object]:
    return loop.run(workload, folder, loop.Style(careful=False))
