"""The plain tables that a report is made from. Search and tracking fill them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sft_mlflow.tasks.classification.metrics import Bin, ClassFigures

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


class Interval(NamedTuple):
    """A figure with its interval of 95 %: Wilson's of the accuracy, bootstrap of macro F1."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Prediction:
    """What the best model says of one test image.

    path: as it should be shown; truth, predicted: class names; probability: of the predicted
    class; truth_probability: of the true one.
    """

    path: str
    truth: str
    predicted: str
    probability: float
    truth_probability: float


@dataclass(frozen=True)
class Picture:
    """A prediction and its image as a small JPEG (see `pictures.thumbnail`)."""

    prediction: Prediction
    jpeg: bytes


@dataclass(frozen=True)
class Calibration:
    """What temperature scaling did to the test probabilities: expected error and bins."""

    temperature: float
    ece_before: float
    ece_after: float
    before: tuple[Bin, ...]
    after: tuple[Bin, ...]


@dataclass(frozen=True)
class TestFigures:
    """How the best model does on the test side.

    figures: by plain name (`accuracy`), the first one leads the report; confusion: (classes,
    classes) counts, row is the true class, in the order of per_class; worst: mistakes, the most
    confident first; typical: right answers.
    """

    __test__ = False  # pytest takes a class of this name for a test

    images: int
    figures: Mapping[str, Interval]
    per_class: tuple[ClassFigures, ...]
    confusion: NDArray[np.int64]
    calibration: Calibration
    worst: tuple[Picture, ...] = ()
    typical: tuple[Picture, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the confusion matrix."""
        return tuple(figures.name for figures in self.per_class)


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
    the best trial, None where none finished, and then test is None too; seconds: of the whole
    study by the clock; versions: of this product and of its libraries; check: `to_dict()` of the
    data's CheckReport.
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
    """How many images of one class were taken for another, and what share of their class."""

    truth: str
    predicted: str
    images: int
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


def confused_pairs(
    confusion: NDArray[np.int64], classes: Sequence[str], most: int
) -> list[ConfusedPair]:
    """At most `most` pairs of classes that were confused, the most frequent first."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    support = confusion.sum(axis=1)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    places = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [
        ConfusedPair(classes[i], classes[j], int(wrong[i, j]), float(wrong[i, j] / support[i]))
        for i, j in places
        if wrong[i, j]
    ]


def _value(trial: TrialRow) -> float:
    return -np.inf if trial.value is None else trial.value
