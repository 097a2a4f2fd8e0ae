"""What a running trial tells: plain values that any consumer may read, log or ignore."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

# Who watches a command should not wait for torch.
if TYPE_CHECKING:
    from sft_mlflow.data.manifest import Sample
    from sft_mlflow.tasks.base import Answer, Evidence


@dataclass(frozen=True)
class FitStarted:
    """The trial is set up. resumed: epochs that an earlier, interrupted attempt had finished."""

    epochs: int
    steps: int
    trainable: int
    resumed: int


@dataclass(frozen=True)
class RoadChosen:
    """Where the trial's values come from, before it starts.

    stage: the last one whose values are read from the store, None where they are pixels; seconds:
    predicted, for reading and computing all values up to the trained part.
    """

    stage: str | None
    seconds: float


@dataclass(frozen=True)
class RoadTravelled:
    """What that reading and computing took in fact, before the trial ends.

    had_room: whether the store had room for all that was to be kept.
    """

    stage: str | None
    predicted_seconds: float
    seconds: float
    had_room: bool


@dataclass(frozen=True)
class StoreFilled:
    """So many rows of those that the trial reads are in the store."""

    done: int
    total: int


@dataclass(frozen=True)
class StepEnded:
    """One optimiser step. epoch counts from 1; step from 1 to steps within the epoch."""

    epoch: int
    step: int
    steps: int


@dataclass(frozen=True)
class EpochEnded:
    """One epoch with its validation. metrics: `train/loss`, `valid/...`, `lr`.

    epoch counts from 1, 0 is the probe that the head starts from; value: the objective;
    timestamp: milliseconds since 1970, of the epoch's end.
    """

    epoch: int
    value: float
    metrics: Mapping[str, float]
    seconds: float
    timestamp: int


@dataclass(frozen=True)
class Answered:
    """What the network says of the validation images, before the epoch's `EpochEnded`.

    answers: to the first of the samples; evidence: of those to all.
    """

    epoch: int
    samples: Sequence[Sample]
    evidence: Evidence
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Pictured:
    """The same as a picture that is in a file. timestamp: milliseconds since 1970."""

    epoch: int
    path: Path
    timestamp: int


FitReason = Literal["finished", "early-stopped", "stopped"]


@dataclass(frozen=True)
class FitEnded:
    """The trial is over. stopped: by its consumer."""

    reason: FitReason
    best_epoch: int
    value: float


FitEvent = (
    RoadChosen
    | RoadTravelled
    | StoreFilled
    | FitStarted
    | StepEnded
    | Answered
    | Pictured
    | EpochEnded
    | FitEnded
)
