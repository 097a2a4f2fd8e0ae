"""The loop as a careful user writes it: bfloat16, channels-last, images decoded once."""

from __future__ import annotations

from pathlib import Path

from benchmarks.nautilus import loop
from benchmarks.nautilus.workload import Workload


def run(workload: Workload, folder: Path) -> dict[str, object]:
    return loop.run(workload, folder, loop.Style(careful=True))
