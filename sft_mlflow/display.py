"""What a person sees while a command works: bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from sft_mlflow.commands.observer import CommandEvent, Notice, Observer, Progress, StudyBegun
from sft_mlflow.scoring.events import BatchScored, ScoreEnded, ScoreStarted
from sft_mlflow.search.events import TrialEnded, TrialEvent, TrialStarted
from sft_mlflow.training.events import EpochEnded, RoadTravelled, StepEnded, StoreFilled

# Between two plain lines about the same piece of work.
LINE_SECONDS = 10.0


@contextmanager
def display() -> Iterator[Observer]:
    """An observer that shows events on the terminal, or as lines where there is none."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        yield _Lines()
        return
    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
    )
    with bars:
        yield _Bars(bars)


class _Words:
    """The sentences that both kinds of display say, and the little that they must remember."""

    def __init__(self) -> None:
        self._study: StudyBegun | None = None
        self._depths: dict[int, int] = {}
        # Value, minus depth and minus number: of equals the one that trains less, then the first.
        self._best: tuple[float, int, int] | None = None

    def study(self, event: StudyBegun) -> str:
        self._study = event
        self._best = None
        if event.best is not None:
            value, depth, number = event.best
            self._best = (value, -depth, -number)
        epochs = "one epoch" if event.epochs == 1 else f"up to {event.epochs} epochs"
        if event.trials is None:
            return f"Trials of {epochs} until the budget ends"
        return f"{event.trials} {'trial' if event.trials == 1 else 'trials'} of {epochs}"

    def started(self, event: TrialStarted) -> str:
        recipe = event.recipe
        self._depths[event.number] = recipe.depth
        what = "probe" if recipe.is_probe else f"depth {recipe.depth}"
        rate = "" if recipe.lr is None else f", lr {recipe.lr:.2g}"
        others = "".join(f", {n.replace('_', ' ')} {v}" for n, v in event.others.items())
        again = "" if event.continues is None else f", goes on with trial {event.continues}"
        return f"trial {event.number}: {what}{rate}{others}{again}"

    def road(self, number: int, event: RoadTravelled) -> str:
        begin = "pixels" if event.stage is None else f"what is kept of {event.stage}"
        full = "" if event.had_room else "; --cache-gb or the disk had no room for all of it"
        return (
            f"trial {number}: its inputs took {event.seconds:.1f} s, from {begin} on "
            f"(predicted {event.predicted_seconds:.1f} s){full}"
        )

    def epoch(self, number: int, event: EpochEnded) -> str:
        loss = event.metrics.get("train/loss")
        trained = "start" if loss is None else f"epoch {event.epoch}, loss {loss:.3f}"
        said = f"trial {number}: {trained}, {self._objective} {event.value:.4f}"
        return f"{said}, {self.remaining()}" if self.remaining() else said

    def ended(self, event: TrialEnded) -> str:
        if event.state == "COMPLETE" and event.value is not None:
            this = (event.value, -self._depths[event.number], -event.number)
            self._best = this if self._best is None else max(self._best, this)
        value = "" if event.value is None else f", {self._objective} {event.value:.4f}"
        reason = f" ({event.reason})" if event.reason else ""
        return (
            f"trial {event.number}: {event.state.lower()}{value} in {event.seconds:.0f} s{reason}"
            f"{'; ' if self._best else ''}{self.best()}"
        )

    def best(self) -> str:
        if self._best is None:
            return ""
        return f"best {self._best[0]:.4f} in trial {-self._best[2]}"

    def remaining(self) -> str:
        if self._study is None or self._study.deadline is None:
            return ""
        left = max(0.0, self._study.deadline - time.monotonic())
        return f"{left / 60:.1f} min left"

    def scored(self, event: BatchScored) -> str:
        errors = f", {event.errors} unreadable" if event.errors else ""
        return f"{event.images_per_second:.0f} images/s{errors}"

    @property
    def _objective(self) -> str:
        return self._study.objective if self._study else "value"


class _Lines:
    """Plain lines on standard error; long work says now and then how far it is."""

    def __init__(self) -> None:
        self._words = _Words()
        self._last = time.monotonic()

    def __call__(self, event: CommandEvent) -> None:
        line = self._line(event)
        if line is not None:
            print(line, file=sys.stderr, flush=True)

    def _line(self, event: CommandEvent) -> str | None:
        words = self._words
        if isinstance(event, Notice):
            return event.text
        if isinstance(event, StudyBegun):
            return words.study(event)
        if isinstance(event, TrialStarted):
            return words.started(event)
        if isinstance(event, TrialEnded):
            return words.ended(event)
        if isinstance(event, TrialEvent) and isinstance(event.event, EpochEnded):
            return words.epoch(event.number, event.event)
        if isinstance(event, TrialEvent) and isinstance(event.event, RoadTravelled):
            return words.road(event.number, event.event)
        return self._now_and_then(event)

    def _now_and_then(self, event: CommandEvent) -> str | None:
        line = None
        if isinstance(event, Progress):
            line = f"{event.what}: {event.done} of {event.total}"
        elif isinstance(event, BatchScored):
            line = f"Scored {event.done} of {event.total}, {self._words.scored(event)}"
        elif isinstance(event, TrialEvent) and isinstance(event.event, StepEnded):
            step = event.event
            line = f"trial {event.number}: epoch {step.epoch}, step {step.step} of {step.steps}"
        elif isinstance(event, TrialEvent) and isinstance(event.event, StoreFilled):
            filled = event.event
            line = (
                f"trial {event.number}: {filled.done} of {filled.total} images put into the store"
            )
        if line is None or time.monotonic() - self._last < LINE_SECONDS:
            return None
        self._last = time.monotonic()
        return line


class _Bars:
    """A bar for the study, one for each running trial, and lines above them for what is over."""

    def __init__(self, bars: Bars) -> None:
        self._words = _Words()
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, event: CommandEvent) -> None:
        words, bars = self._words, self._bars
        if isinstance(event, Notice):
            bars.console.print(event.text, markup=False)
        elif isinstance(event, Progress):
            self._show(event.what, event.what, event.done, event.total)
            if event.done == event.total:
                self._hide(event.what)
        elif isinstance(event, StudyBegun):
            bars.console.print(words.study(event), markup=False)
            self._show("study", "trials", event.done, event.trials)
        elif isinstance(event, TrialStarted):
            total = None if event.recipe.is_probe else event.recipe.epochs
            self._show(f"trial {event.number}", words.started(event), 0, total)
        elif isinstance(event, TrialEnded):
            self._hide(f"trial {event.number}")
            bars.console.print(words.ended(event), markup=False)
            self._advance("study")
        elif isinstance(event, TrialEvent):
            self._trial(event)
        elif isinstance(event, ScoreStarted):
            self._show("score", "images", event.done, event.total)
        elif isinstance(event, BatchScored):
            self._show("score", "images", event.done, event.total, words.scored(event))
        elif isinstance(event, ScoreEnded):
            self._hide("score")

    def _trial(self, event: TrialEvent) -> None:
        key = f"trial {event.number}"
        inner = event.event
        if isinstance(inner, StepEnded):
            done = inner.epoch - 1 + inner.step / inner.steps
            self._update(key, done, f"step {inner.step}/{inner.steps}")
        elif isinstance(inner, EpochEnded):
            self._update(key, inner.epoch, self._words.epoch(event.number, inner))
        elif isinstance(inner, StoreFilled):
            self._update(key, 0, f"{inner.done} of {inner.total} images in the store")
        elif isinstance(inner, RoadTravelled):
            self._bars.console.print(self._words.road(event.number, inner), markup=False)
        parts = (self._words.best(), self._words.remaining())
        self._note("study", ", ".join(part for part in parts if part))

    def _show(self, key: str, what: str, done: float, total: float | None, note: str = "") -> None:
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(what, total=total, note=note)
        self._update(key, done, note)

    def _update(self, key: str, done: float, note: str) -> None:
        self._bars.update(self._tasks[key], completed=round(done, 2), note=note)

    def _note(self, key: str, note: str) -> None:
        self._bars.update(self._tasks[key], note=note)

    def _advance(self, key: str) -> None:
        self._bars.advance(self._tasks[key])

    def _hide(self, key: str) -> None:
        if key in self._tasks:
            self._bars.remove_task(self._tasks.pop(key))
