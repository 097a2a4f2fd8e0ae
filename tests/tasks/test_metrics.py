from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, classification_report, f1_score, log_loss

from sft_mlflow.tasks.classification import metrics

CLASSES = ("a", "b", "c", "d")


def made(count: int, seed: int = 0) -> tuple[metrics.Probabilities, metrics.Targets]:
    """Probabilities that are right more often than not, and their targets."""
    generator = np.random.default_rng(seed)
    targets = generator.integers(len(CLASSES), size=count)
    logits = generator.normal(size=(count, len(CLASSES)))
    logits[np.arange(count), targets] += 1.5
    exponents = np.exp(logits)
    return exponents / exponents.sum(axis=1, keepdims=True), targets


def test_figures_agree_with_scikit_learn() -> None:
    probabilities, targets = made(200)
    predicted = probabilities.argmax(axis=1)
    assert metrics.accuracy(probabilities, targets) == accuracy_score(targets, predicted)
    assert metrics.macro_f1(probabilities, targets) == pytest.approx(
        f1_score(targets, predicted, average="macro")
    )
    assert metrics.negative_log_likelihood(probabilities, targets) == pytest.approx(
        log_loss(targets, probabilities)
    )


def test_macro_f1_by_hand() -> None:
    # Class 0: precision 1/2, recall 1. Class 1: precision 1, recall 1/2. F1 is 2/3 for both.
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    assert metrics.macro_f1(probabilities, np.array([0, 1, 1])) == pytest.approx(2 / 3)


def test_calibration_error_by_hand() -> None:
    # Two images at confidence 0.9, one of them right: a gap of 0.4 for half of the images.
    # Two at 0.6: a gap of 0.4 if both are right, of 0.1 if one is.
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4], [0.4, 0.6]])
    assert metrics.expected_calibration_error(
        probabilities, np.array([0, 0, 0, 1])
    ) == pytest.approx(0.5 * abs(0.9 - 0.5) + 0.5 * abs(0.6 - 1.0))
    assert metrics.expected_calibration_error(
        probabilities, np.array([0, 0, 0, 0])
    ) == pytest.approx(0.5 * abs(0.9 - 0.5) + 0.5 * abs(0.6 - 0.5))


def test_certain_and_right_is_perfectly_calibrated() -> None:
    targets = np.array([0, 3, 2, 1])
    assert metrics.expected_calibration_error(np.eye(4)[targets], targets) == 0
    assert metrics.expected_calibration_error(np.eye(4)[targets], (targets + 1) % 4) == 1


def test_the_bars_of_the_reliability_diagram_hold_every_image_once() -> None:
    probabilities, targets = made(500)
    bars = metrics.reliability(probabilities, targets)
    assert sum(bar.count for bar in bars) == 500
    assert all(bar.low <= bar.confidence <= bar.high for bar in bars)
    right = sum(bar.accuracy * bar.count for bar in bars)
    assert right == pytest.approx(500 * metrics.accuracy(probabilities, targets))


def test_figures_of_each_class_are_those_of_scikit_learns_report() -> None:
    probabilities, targets = made(200)
    report = classification_report(
        targets, probabilities.argmax(axis=1), target_names=CLASSES, output_dict=True
    )
    for figures in metrics.per_class(probabilities, targets, CLASSES):
        expected = report[figures.name]
        wanted = (expected["precision"], expected["recall"], expected["f1-score"])
        assert figures.values == pytest.approx(wanted)
        assert figures.count == expected["support"]


def test_a_class_that_never_occurs_has_zeros_and_a_row_in_the_confusion() -> None:
    probabilities, targets = np.eye(3)[[0, 1, 1]], np.array([0, 1, 0])
    absent = metrics.per_class(probabilities, targets, ("a", "b", "c"))[2]
    assert (absent.values, absent.count) == ((0, 0, 0), 0)
    confusion = metrics.confusion(probabilities, targets, ("a", "b", "c"))
    assert confusion.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_a_wrong_answer_without_doubt_costs_much_but_not_infinitely() -> None:
    loss = metrics.negative_log_likelihood(np.array([[1.0, 0.0]]), np.array([1]))
    assert 20 < loss < np.inf


def test_the_bootstrap_interval_holds_the_figure_and_shrinks_with_the_root_of_n() -> None:
    widths = []
    for count in (100, 1600):
        probabilities, targets = made(count)
        low, high = metrics.bootstrap_interval(metrics.accuracy, probabilities, targets, seed=0)
        figure = metrics.accuracy(probabilities, targets)
        assert low < figure < high
        # The binomial's own width, 2 x 1.96 standard errors.
        expected = 2 * 1.96 * np.sqrt(figure * (1 - figure) / count)
        assert high - low == pytest.approx(expected, rel=0.2)
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.3)


def test_the_bootstrap_interval_belongs_to_its_seed() -> None:
    probabilities, targets = made(60)

    def interval(seed: int) -> tuple[float, float]:
        return metrics.bootstrap_interval(metrics.macro_f1, probabilities, targets, seed=seed)

    assert interval(1) == interval(1)
    assert interval(1) != interval(2)


def test_the_interval_of_the_accuracy_is_wilsons() -> None:
    # 281 of 283, by the published formula: centre and half width of z = 1.959964.
    probabilities = np.eye(2)[[0] * 283]
    targets = np.array([1] * 2 + [0] * 281)
    z, n, p = 1.959964, 283, 281 / 283
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    found = metrics.accuracy_interval(probabilities, targets)
    assert found == pytest.approx((centre - half, centre + half), abs=1e-6)
    assert metrics.accuracy_interval(probabilities, np.zeros(283, int))[0] < 0.99
