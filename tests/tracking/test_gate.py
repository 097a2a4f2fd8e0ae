from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from sft_mlflow.data.manifest import Sample
from sft_mlflow.data.pixels import PixelSpec
from sft_mlflow.tasks.base import Frame
from sft_mlflow.tasks.classification import CLASSIFICATION
from sft_mlflow.tracking import gate as module
from sft_mlflow.tracking.gate import Contestant, Gate, Verdict

CLASSES = ("cat", "dog")
PIXELS = PixelSpec(32, "bilinear")


def answers(said: Sequence[str], classes: tuple[str, ...] = CLASSES) -> Contestant:
    logits = np.zeros((len(said), len(classes)))
    for row, name in enumerate(said):
        logits[row, classes.index(name)] = 5.0
    return Contestant(Frame(classes, PIXELS), logits)


def samples_of(labels: Sequence[str]) -> list[Sample]:
    return [Sample(Path(f"/{n}.png"), label, str(n), "test") for n, label in enumerate(labels)]


def judge(
    gate: Gate, labels: Sequence[str], challenger: Contestant, champion: Contestant | None
) -> Verdict:
    return module.judge(gate, CLASSIFICATION.judging, samples_of(labels), challenger, champion)


def names(verdict: Verdict) -> list[str]:
    return [condition.name for condition in verdict.failed]


def wrong_on(labels: Sequence[str], rows: Sequence[int]) -> Contestant:
    flip = {"cat": "dog", "dog": "cat"}
    return answers([flip[n] if i in set(rows) else n for i, n in enumerate(labels)])


LABELS = ["cat", "dog"] * 50


def test_the_first_champion_needs_only_the_minimum() -> None:
    verdict = judge(Gate(minimum=0.9), LABELS, wrong_on(LABELS, range(10)), None)
    assert verdict.passed
    assert verdict.comparison is None
    assert names(judge(Gate(minimum=0.91), LABELS, wrong_on(LABELS, range(10)), None)) == [
        "minimum"
    ]


def test_without_a_minimum_a_model_must_beat_the_most_frequent_class() -> None:
    labels = ["cat"] * 8 + ["dog"] * 2
    assert names(judge(Gate(), labels, answers(["cat"] * 10), None)) == ["minimum"]
    assert judge(Gate(), labels, answers(["cat"] * 8 + ["dog", "cat"]), None).passed
    # F1 of cat is 8/9 there, of dog 0.
    assert names(judge(Gate("macro_f1"), labels, answers(["cat"] * 10), None)) == ["minimum"]
    assert judge(Gate("macro_f1", 4 / 9), labels, answers(["cat"] * 10), None).passed


def test_the_same_answers_pass_and_a_single_lost_image_does_not() -> None:
    champion = wrong_on(LABELS, [0])
    assert judge(Gate(), LABELS, champion, champion).passed
    assert names(judge(Gate(), LABELS, wrong_on(LABELS, [0, 1]), champion)) == ["improvement"]


def test_a_minimum_gain_is_met_exactly() -> None:
    champion, challenger = wrong_on(LABELS, range(10)), wrong_on(LABELS, range(5))
    assert judge(Gate(min_improvement=0.05), LABELS, challenger, champion).passed
    assert names(judge(Gate(min_improvement=0.051), LABELS, challenger, champion)) == [
        "improvement"
    ]


def test_the_paired_test_is_mcnemars_exact_one() -> None:
    # 5 images against 1: (6 + 1) / 2**6 of the coin's tosses are as extreme.
    comparison = module.compare(
        CLASSIFICATION.judging,
        "accuracy",
        samples_of(LABELS),
        wrong_on(LABELS, [9]),
        wrong_on(LABELS, range(5)),
    )
    assert (comparison.only_challenger, comparison.only_champion) == (5, 1)
    assert comparison.p_better == pytest.approx(7 / 64)
    assert comparison.p_worse == pytest.approx(63 / 64)


def test_a_significantly_worse_challenger_is_refused_even_where_a_loss_is_allowed() -> None:
    gate = Gate(min_improvement=-1.0, max_class_drop=1.0)
    # 4 against 0 are 1/16, 5 against 0 are 1/32.
    assert judge(gate, LABELS, wrong_on(LABELS, range(4)), answers(LABELS)).passed
    assert names(judge(gate, LABELS, wrong_on(LABELS, range(5)), answers(LABELS))) == ["not worse"]


def test_a_gain_that_may_be_chance_is_refused_where_a_p_value_is_asked() -> None:
    gate = Gate(max_p_value=0.05)
    assert judge(gate, LABELS, answers(LABELS), wrong_on(LABELS, range(5))).passed
    assert names(judge(gate, LABELS, answers(LABELS), wrong_on(LABELS, range(4)))) == ["better"]


def test_a_class_may_not_fall_though_the_whole_gains() -> None:
    cats = [row for row, name in enumerate(LABELS) if name == "cat"]
    dogs = [row for row, name in enumerate(LABELS) if name == "dog"]
    champion, challenger = wrong_on(LABELS, cats[:20]), wrong_on(LABELS, dogs[:6])
    verdict = judge(Gate(max_class_drop=0.1), LABELS, challenger, champion)
    assert names(verdict) == ["class drop"]
    assert "'dog' 1.000 -> 0.880 (50 images)" in verdict.failed[0].message
    assert judge(Gate(max_class_drop=0.12), LABELS, challenger, champion).passed


def test_a_single_image_of_a_small_class_never_decides() -> None:
    labels = ["cat"] * 20 + ["dog"] * 2
    champion = wrong_on(labels, range(5))
    assert judge(Gate(), labels, wrong_on(labels, [20]), champion).passed
    both = judge(Gate(minimum=0), labels, wrong_on(labels, [20, 21]), champion)
    assert names(both) == ["class drop"]


def test_classes_are_matched_by_name_in_any_order() -> None:
    turned = answers(LABELS, ("dog", "cat"))
    verdict = judge(Gate(), LABELS, turned, answers(LABELS))
    assert verdict.passed
    assert verdict.comparison is not None
    assert verdict.comparison.only_champion == verdict.comparison.only_challenger == 0


def test_new_classes_count_for_the_minimum_and_not_for_the_comparison() -> None:
    labels = [*LABELS, *["emu"] * 10]
    challenger = answers(labels, ("cat", "dog", "emu"))
    champion = answers([*LABELS, *["cat"] * 10])
    verdict = judge(Gate(), labels, challenger, champion)
    assert verdict.passed
    assert verdict.challenger.images == 110
    assert verdict.comparison is not None
    assert verdict.comparison.champion.images == 100
    assert verdict.comparison.champion.values["accuracy"] == 1.0


def test_a_challenger_that_lost_a_class_is_refused() -> None:
    champion = answers(LABELS, ("cat", "dog", "emu"))
    verdict = judge(Gate(), LABELS, answers(LABELS), champion)
    assert names(verdict) == ["classes"]
    assert "'emu'" in verdict.failed[0].message


def test_models_without_a_class_in_common_cannot_be_compared() -> None:
    champion = answers(["emu"] * 100, ("emu", "gnu"))
    assert names(judge(Gate(), LABELS, answers(LABELS), champion)) == ["classes", "comparison"]
