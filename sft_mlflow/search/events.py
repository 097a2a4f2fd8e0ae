"""What a running study tells: plain values for progress displays and tracking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sft_mlflow.training.events import FitEvent

# Who watches a command should not wait for torch.
if TYPE_CHECKING:
    from sft_mlflow.training.recipe import Recipe

TrialState = Literal["COMPLETE", "PRUNED", "FAIL"]


@dataclass(frozen=True)
class TrialStarted:
    """A trial begins.

    others: what its recipe has of the further fields that are searched; attempt: 1, or more where a
    crash interrupted it before, as the trial of the number `continues`.
    """

    number: int
    recipe: Recipe
    others: Mapping[str, int]
    folder: Path
    attempt: int
    continues: int | None = None


@dataclass(frozen=True)
class TrialEvent:
    """Something happened within a trial."""

    number: int
    event: FitEvent


@dataclass(frozen=True)
class TrialEnded:
    """A trial is over. value: its best objective; reason: why it ended before its last epoch.

    model: folder of its model, None where it has none.
    """

    number: int
    state: TrialState
    value: float | None
    reason: str | None
    model: Path | None
    seconds: float


StudyEvent = TrialStarted | TrialEvent | TrialEnded
