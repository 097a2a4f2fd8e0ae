"""What a running command tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sft_mlflow.scoring.events import ScoreEvent
from sft_mlflow.search.events import StudyEvent


@dataclass(frozen=True)
class Notice:
    """A sentence to read."""

    text: str


@dataclass(frozen=True)
class Progress:
    """Part of a long piece of work is done. what: in words, the same until it is complete."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class StudyBegun:
    """Trials follow.

    trials: in all, None if only the budget ends them; deadline: on the clock of `time.monotonic`;
    done: trials of earlier invocations; best: value, depth and number of the best among them.
    """

    name: str
    objective: str
    trials: int | None
    epochs: int
    deadline: float | None
    done: int
    best: tuple[float, int, int] | None


CommandEvent = Notice | Progress | StudyBegun | StudyEvent | ScoreEvent
Observer = Callable[[CommandEvent], None]


def unobserved(event: CommandEvent) -> None:
    """Tell nobody."""
