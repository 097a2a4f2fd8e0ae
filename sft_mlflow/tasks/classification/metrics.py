"""Figures of a classifier from its probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

from sft_mlflow.tasks.bootstrap import CONFIDENCE, TAIL, resampled
from sft_mlflow.tasks.figures import Bin, ClassRow

RESAMPLES = 500

Probabilities = NDArray[np.float64]
Targets = NDArray[np.int64]
BINS = 15


def summary(probabilities: Probabilities, targets: Targets) -> dict[str, float]:
    """`accuracy`, `macro_f1` and `ece` of probabilities (N, classes) against targets (N,)."""
    return summary_of_answers(probabilities.argmax(axis=1), probabilities.max(axis=1), targets)


def summary_of_answers(
    predicted: Targets, confidence: NDArray[np.float64], targets: Targets
) -> dict[str, float]:
    """The same of the most probable classes (N,) and their probabilities (N,) alone."""
    return {
        "accuracy": _accuracy(predicted, targets),
        "macro_f1": _macro_f1(predicted, targets),
        "ece": _calibration_error(_bins(confidence, predicted == targets)),
    }


def accuracy(probabilities: Probabilities, targets: Targets) -> float:
    """Share of images whose most probable class is the true one."""
    return _accuracy(probabilities.argmax(axis=1), targets)


def macro_f1(probabilities: Probabilities, targets: Targets) -> float:
    """F1 averaged over the classes that occur in targets or predictions, each counting the same."""
    return _macro_f1(probabilities.argmax(axis=1), targets)


def negative_log_likelihood(probabilities: Probabilities, targets: Targets) -> float:
    """Mean of -log of the probability of the true class."""
    chosen = probabilities[np.arange(len(targets)), targets]
    return float(-np.log(np.clip(chosen, 1e-12, None)).mean())


def reliability(probabilities: Probabilities, targets: Targets) -> tuple[Bin, ...]:
    """Confidence against accuracy in bins of equal width; empty bins are left out."""
    return _bins(probabilities.max(axis=1), probabilities.argmax(axis=1) == targets)


def expected_calibration_error(probabilities: Probabilities, targets: Targets) -> float:
    """Gap between confidence and accuracy, averaged over 15 bins by their number of images.

    Guo et al. 2017, arXiv 1706.04599.
    """
    return _calibration_error(reliability(probabilities, targets))


def _accuracy(predicted: Targets, targets: Targets) -> float:
    return float((predicted == targets).mean())


def _macro_f1(predicted: Targets, targets: Targets) -> float:
    return float(f1_score(targets, predicted, average="macro", zero_division=0))


def _bins(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> tuple[Bin, ...]:
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return tuple(
        Bin(
            low=i / BINS,
            high=(i + 1) / BINS,
            confidence=float(confidence[place == i].mean()),
            accuracy=float(correct[place == i].mean()),
            count=int((place == i).sum()),
        )
        for i in range(BINS)
        if (place == i).any()
    )


def _calibration_error(bins: tuple[Bin, ...]) -> float:
    images = sum(b.count for b in bins)
    return sum(b.count * abs(b.confidence - b.accuracy) for b in bins) / images


def per_class(
    probabilities: Probabilities, targets: Targets, classes: Sequence[str]
) -> tuple[ClassRow, ...]:
    """Precision, recall and F1 of every class, in the order of `classes`, and its images."""
    columns = precision_recall_fscore_support(
        targets, probabilities.argmax(axis=1), labels=range(len(classes)), zero_division=0
    )
    return tuple(
        ClassRow(name, int(n), (float(p), float(r), float(f)))
        for name, p, r, f, n in zip(classes, *columns, strict=True)
    )


def confusion(
    probabilities: Probabilities, targets: Targets, classes: Sequence[str]
) -> NDArray[np.int64]:
    """(classes, classes) counts: row is the true class, column the predicted one."""
    result: NDArray[np.int64] = confusion_matrix(
        targets, probabilities.argmax(axis=1), labels=range(len(classes))
    )
    return result


def accuracy_interval(probabilities: Probabilities, targets: Targets) -> tuple[float, float]:
    """Wilson's 95 % interval of the accuracy, which has a width even where all are right.

    Wilson 1927, Journal of the American Statistical Association 22 (158).
    """
    correct = int((probabilities.argmax(axis=1) == targets).sum())
    found = binomtest(correct, len(targets)).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def bootstrap_interval(
    metric: Callable[[Probabilities, Targets], float],
    probabilities: Probabilities,
    targets: Targets,
    *,
    seed: int,
) -> tuple[float, float]:
    """Percentile bootstrap interval of 95 % of a metric over images drawn with replacement.

    Efron & Tibshirani 1993, chapter 13. A figure of an image's answer is not larger where the image
    is drawn twice, so percentiles do here.
    """
    values = [
        metric(probabilities[rows], targets[rows])
        for rows in resampled(len(targets), RESAMPLES, seed)
    ]
    low, high = np.percentile(values, [TAIL, 100 - TAIL])
    return float(low), float(high)
