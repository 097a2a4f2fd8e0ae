"""The plain tables that a report is made from. Search and tracking fill them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import numpy as np

from sft_mlflow.tasks.figures import Confusion, TestFigures

TrialState = Literal["COMPLETE", "PRUNED", "FAIL"]


@dataclass(frozen=True)
class TrialRow:
    """One trial as it ended.

    value: the objective on validation data, the better the larger; of a pruned trial the best one
    reported; None where there is none. depth: stages that were trained, of full_depth; lr: None for
    a probe, which has none; others: further values that were searched. metrics: by their logged
    names (`valid/accuracy`); reason: why it was pruned or failed.
    """

    number: int
    state: TrialState
    value: float | None
    source: str
    depth: int
    full_depth: int
    lr: float | None
    others: Mapping[str, int]
    epochs_done: int
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True)
class DataTable:
    """The data of the study. counts: images on each side of the split; classes: how many."""

    name: str
    uri: str
    digest: str
    counts: Mapping[str, int]
    classes: int


class NextStep(NamedTuple):
    """What the reader can do now, and the exact command that does it."""

    what: str
    command: str


@dataclass(frozen=True)
class StudyReport:
    """Everything that the report says.

    model: URI of the best trial's model; alias: in the registry, None where it is not registered;
    objective: metric that trials were chosen by, with the reason for it; importance: share of
    each searched dimension in [0, 1], empty where the trials are too few to say; best: number of
    the best trial, None where none finished, and then test is None too; seconds: of this run of
    the study by the clock; versions: of this product and of its libraries; check: `to_dict()` of
    the data's CheckReport.
    """

    title: str
    model: str | None
    alias: str | None
    next_steps: tuple[NextStep, ...]
    command: str
    versions: Mapping[str, str]
    data: DataTable
    check: Mapping[str, Any]
    objective: str
    objective_reason: str
    trials: tuple[TrialRow, ...]
    importance: Mapping[str, float]
    best: int | None
    test: TestFigures | None
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def best_trial(self) -> TrialRow | None:
        """The best trial, or None where none finished."""
        return next((trial for trial in self.trials if trial.number == self.best), None)


class ConfusedPair(NamedTuple):
    """How many of one class were taken for another, and what share of their class."""

    truth: str
    predicted: str
    number: int
    share: float


def best_so_far(trials: Sequence[TrialRow]) -> list[float | None]:
    """The best value of the finished trials up to each one, in the given order.

    None before the first finished trial.
    """

    def better(best: float | None, value: float | None) -> float | None:
        if best is None or value is None:
            return value if best is None else best
        return max(best, value)

    return list(accumulate((t.value if t.state == "COMPLETE" else None for t in trials), better))


def best_probe(trials: Sequence[TrialRow], source: str) -> TrialRow | None:
    """The best finished trial that trained nothing but the head of this source, or None."""
    probes = [
        trial
        for trial in trials
        if trial.depth == 0 and trial.state == "COMPLETE" and trial.source == source
    ]
    return max(probes, key=_value, default=None)


def by_merit(trials: Sequence[TrialRow]) -> list[TrialRow]:
    """Finished trials by falling value, then pruned ones likewise, then failed ones by number."""
    order = {"COMPLETE": 0, "PRUNED": 1, "FAIL": 2}
    return sorted(trials, key=lambda trial: (order[trial.state], -_value(trial), trial.number))


def confused_pairs(confusion: Confusion, most: int) -> list[ConfusedPair]:
    """At most `most` pairs of classes that were confused, the most frequent first."""
    names, wrong = confusion.names, confusion.counts.copy()
    np.fill_diagonal(wrong, 0)
    support = confusion.counts.sum(axis=1)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    places = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [
        ConfusedPair(names[i], names[j], int(wrong[i, j]), float(wrong[i, j] / support[i]))
        for i, j in places
        if wrong[i, j]
    ]


def _value(trial: TrialRow) -> float:
    return -np.inf if trial.value is None else trial.value
