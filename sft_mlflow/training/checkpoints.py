"""What survives a crash of a trial: its last whole epoch and its best one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sft_mlflow.training.events import EpochEnded
from sft_mlflow.whole_file import whole_file

LAST = "last.pt"
BEST = "best.pt"


@dataclass(frozen=True)
class Checkpoint:
    """State after a whole epoch.

    tensors: those that train, and their stages' buffers; average: of the same, over the last steps.
    """

    tensors: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    schedule: Mapping[str, Any]
    history: tuple[EpochEnded, ...]


def save(folder: Path, checkpoint: Checkpoint, is_best: bool) -> None:
    """Write the checkpoint; a crash leaves the previous one or this one, never half of one."""
    folder.mkdir(parents=True, exist_ok=True)
    if is_best:
        _write(folder / BEST, dict(checkpoint.average))
    _write(
        folder / LAST,
        {
            "tensors": dict(checkpoint.tensors),
            "average": dict(checkpoint.average),
            "optimizer": dict(checkpoint.optimizer),
            "schedule": dict(checkpoint.schedule),
            "history": [asdict(epoch) for epoch in checkpoint.history],
        },
    )


def load(folder: Path) -> Checkpoint | None:
    """The last checkpoint of the folder, or None where there is none."""
    path = folder / LAST
    if not path.exists():
        return None
    saved = torch.load(path, map_location="cpu", weights_only=True)
    history = tuple(EpochEnded(**epoch) for epoch in saved["history"])
    return Checkpoint(
        saved["tensors"], saved["average"], saved["optimizer"], saved["schedule"], history
    )


def best_tensors(folder: Path) -> dict[str, Tensor]:
    """Averaged tensors of the best epoch so far."""
    tensors: dict[str, Tensor] = torch.load(folder / BEST, map_location="cpu", weights_only=True)
    return tensors


def remove(folder: Path) -> None:
    """Delete the checkpoints, once the model that came of them is written."""
    for name in (LAST, BEST):
        (folder / name).unlink(missing_ok=True)


def _write(path: Path, value: object) -> None:
    with whole_file(path) as beside:
        torch.save(value, beside)
