from __future__ import annotations

import numpy as np

from sft_mlflow.report.tables import ConfusedPair, best_so_far, by_merit, confused_pairs
from sft_mlflow.tasks.figures import Confusion

from .made_study import trial


def test_the_best_so_far_never_falls_and_counts_finished_trials_only() -> None:
    trials = [
        trial(0, None),
        trial(1, 0.5),
        trial(2, 0.9, state="PRUNED"),
        trial(3, 0.4),
        trial(4, 0.7),
    ]
    assert best_so_far(trials) == [None, 0.5, 0.5, 0.5, 0.7]


def test_finished_trials_come_before_pruned_ones_of_higher_value() -> None:
    trials = [trial(0, None), trial(1, 0.9, state="PRUNED"), trial(2, 0.5), trial(3, 0.6)]
    assert [row.number for row in by_merit(trials)] == [3, 2, 1, 0]


def test_confused_pairs_leave_out_hits_and_pairs_that_never_occurred() -> None:
    confusion = np.array([[50, 0, 2], [5, 15, 0], [0, 0, 0]])
    assert confused_pairs(Confusion(("a", "b", "c"), confusion, "images"), most=5) == [
        ConfusedPair("b", "a", 5, 0.25),
        ConfusedPair("a", "c", 2, 2 / 52),
    ]
