"""What survives a crash of a trial: its last whole epoch that was written, and its best one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sft_mlflow.training.events import EpochEnded
from sft_mlflow.whole_file import whole_file

NAME = "last.pt"
# Of work that a crash may cost beside the epoch under way, where much trains: writing the weights
# of a large network and its optimiser after each epoch of a second or two takes a sixth of a
# trial's time. Where what trains is smaller than that, each epoch is written.
EVERY_SECONDS = 10.0
SMALL_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Checkpoint:
    """State after a whole epoch.

    tensors: those that train, and their stages' buffers; average: of the same, over the last steps;
    best: the average of the best epoch; evidence: of that epoch's answers to the validation side.
    """

    tensors: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    evidence: Tensor
    optimizer: Mapping[str, Any]
    schedule: Mapping[str, Any]
    history: tuple[EpochEnded, ...]


class Checkpoints:
    """The checkpoint of one trial, in a folder."""

    def __init__(self, folder: Path, every_seconds: float = EVERY_SECONDS) -> None:
        self._path = folder / NAME
        self._every_seconds = every_seconds
        # Before the first, nothing was written, however long ago: a start is soon made again.
        self._written = time.monotonic()

    def load(self) -> Checkpoint | None:
        """The last checkpoint, or None where there is none."""
        if not self._path.exists():
            return None
        saved = torch.load(self._path, map_location="cpu", weights_only=True)
        history = tuple(EpochEnded(**epoch) for epoch in saved.pop("history"))
        return Checkpoint(**saved, history=history)

    def keep(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint, unless it is large and one was written a moment ago.

        A crash leaves that one or this one, never half of one, or none where it comes at once.
        """
        large = sum(tensor.nbytes for tensor in checkpoint.tensors.values()) > SMALL_BYTES
        if large and time.monotonic() - self._written < self._every_seconds:
            return
        saved = {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}
        saved["history"] = [asdict(epoch) for epoch in checkpoint.history]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(self._path) as beside:
            torch.save(saved, beside)
        self._written = time.monotonic()

    def remove(self) -> None:
        """Delete it, once the model that came of it is written."""
        self._path.unlink(missing_ok=True)
