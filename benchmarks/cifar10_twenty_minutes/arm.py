"""What every arm is given, and what it gives back."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Setting:
    """images: {train,test}/CLASS/*.jpg; work: the arm's own empty folder; begun: monotonic."""

    images: Path
    work: Path
    begun: float
    seconds: float
    finetune: list[str]

    def used(self) -> float:
        return time.monotonic() - self.begun

    def left(self) -> float:
        return self.seconds - self.used()

    def files(self, side: str) -> list[Path]:
        return sorted((self.images / side).glob("*/*.jpg"))


@dataclass(frozen=True)
class Outcome:
    """correct of images: on the test side; seconds: until the model stood, before its final test.

    chosen: what was settled on validation; commands: for arms that run others.
    """

    correct: int
    images: int
    seconds: float
    chosen: str
    commands: tuple[str, ...] = ()
