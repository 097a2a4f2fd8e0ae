from __future__ import annotations

from dataclasses import replace

import pytest

from sft_mlflow.report import wording
from sft_mlflow.report.text import summary_lines

from .made_study import study, trial


def test_the_summary_says_what_was_found_and_ends_with_the_commands() -> None:
    lines = summary_lines(study())
    tally = "4 trials: 2 finished, 1 pruned, 1 failed"
    assert lines[0] == f"cats and dogs: {tally}; this run took 2 min 31 s"
    assert "Test accuracy 0.9812 (95 % interval 0.9701 to 0.9903) on 20 images" in lines
    assert "Validation accuracy 0.9634, +0.0622 over the probe (0.9012)" in lines
    assert lines[-2:] == ["Promote it:", "  sft-mlflow promote --model-name pets"]


def test_a_probe_that_nothing_improved_on_is_said_to_be_one() -> None:
    trials = (replace(trial(0, 0.97), depth=0, lr=None), trial(1, 0.93))
    lines = summary_lines(study(trials=trials, best=0))
    assert "Validation accuracy 0.9700, no less than any deeper trial reached" in lines
    alone = summary_lines(study(trials=trials[:1], best=0))
    assert "Validation accuracy 0.9700" in alone


def test_the_summary_of_failures_gives_their_reasons() -> None:
    lines = summary_lines(
        study(trials=(trial(0, None), trial(1, None)), best=None, test=None, model=None)
    )
    assert "No trial finished, so there is no model." in lines
    assert "  2 x the loss is NaN in epoch 1" in lines


@pytest.mark.parametrize(
    ("seconds", "spoken"),
    [
        (8.44, "8.4 s"),
        (59.96, "1 min 00 s"),
        (151, "2 min 31 s"),
        (3599.7, "1 h 00 min"),
        (3900, "1 h 05 min"),
    ],
)
def test_durations_carry_over_at_full_minutes_and_hours(seconds: float, spoken: str) -> None:
    assert wording.duration(seconds) == spoken


@pytest.mark.parametrize(
    ("depth", "spoken"),
    [
        (0, "only the head (a probe)"),
        (1, "the last stage of 17 and the head"),
        (5, "the last 5 stages of 17 and the head"),
        (17, "the whole network (17 stages)"),
    ],
)
def test_the_trained_part_is_said_in_words(depth: int, spoken: str) -> None:
    assert wording.trained_part(trial(0, 0.9, depth=depth)) == spoken
