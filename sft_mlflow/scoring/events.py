"""What running batch scoring tells: plain values for progress displays and tracking."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ScoreStarted:
    """total: images in all; done: scored by an earlier, interrupted job; labelled: with a class.

    input_digest: of the listing, as `inputs.Survey` says.
    """

    total: int
    done: int
    labelled: int
    input_digest: str


@dataclass(frozen=True, slots=True)
class BatchScored:
    """done, errors: of all images so far, earlier jobs included; images_per_second: of this one."""

    done: int
    total: int
    errors: int
    images_per_second: float


@dataclass(frozen=True, slots=True)
class ScoreEnded:
    """errors: images that could not be read; scored: in this job; seconds: of this job alone.

    already_there: the output was that of the same job, and nothing was done.
    """

    output: Path
    total: int
    errors: int
    scored: int
    seconds: float
    images_per_second: float
    already_there: bool


ScoreEvent = ScoreStarted | BatchScored | ScoreEnded
