"""The product's own command with `--reuse no`: what reuse alone brings."""

from __future__ import annotations

from pathlib import Path

from benchmarks.nautilus import ours
from benchmarks.nautilus.workload import Workload


def run(workload: Workload, folder: Path) -> dict[str, object]:
    return ours.run_with(workload, folder, ["--reuse=no"])
