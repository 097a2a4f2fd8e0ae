"""The linear probe: the best head on frozen features, where every trial starts (LP-FT)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sft_mlflow.errors import DataError
from sft_mlflow.training.head_start import HeadStart

# Inverse strengths of the L2 penalty that are tried; features have unit variance.
STRENGTHS = (0.001, 0.01, 0.1)
# Of the mean deviation, what one counts at least. A feature that hardly varies would get a weight
# a hundred times as large as others, for nothing, and the first step of what trains below it makes
# it vary (docs/performance.md).
LEAST_SPREAD = 0.3
ITERATIONS = 200


@dataclass(frozen=True)
class Features:
    """Values that the head reads, with the true classes (N,) int64.

    batches: (n, width) float32, N rows in all; gone through once, so that not all of them have to
    be in memory together.
    """

    batches: Iterable[NDArray[np.float32]]
    width: int
    targets: NDArray[np.int64]

    def placed(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Each batch with its rows among all."""
        done = 0
        for batch in self.batches:
            yield slice(done, done + len(batch)), batch
            done += len(batch)


@dataclass(frozen=True)
class Probe:
    """A fitted head: weight (classes, F) and bias (classes,), for features as they come.

    valid: its outputs (N, classes) for the validation side, which trials start from.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    valid: NDArray[np.float32]

    def as_start(self) -> HeadStart:
        """The linear layer of these weights."""
        weight, bias = map(torch.from_numpy, (self.weight, self.bias))
        return HeadStart({"weight": weight, "bias": bias}, self.valid)


def fit_probe(
    train: Features,
    valid: Features,
    classes: int,
    weights: tuple[float, ...] | None,
    evaluate: Callable[[NDArray[np.float32], NDArray[np.int64]], Mapping[str, float]],
    metric: str,
) -> Probe:
    """The multinomial logistic regression whose penalty does best on the validation side.

    weights: of each class, or None; evaluate: metrics of logits, `loss` among them, which decides
    between equals. A class without a training image is never the answer.
    Raises DataError where all training images have one class.
    """
    if len(np.unique(train.targets)) < 2:
        raise DataError(
            "the training side has images of one class only, so there is nothing to tell apart. "
            "Give it images of at least two."
        )
    scaled, mean, spread = _scaled(train)
    heads = []
    for strength in STRENGTHS:
        model = LogisticRegression(
            C=strength,
            max_iter=ITERATIONS,
            class_weight=None if weights is None else dict(enumerate(weights)),
        )
        with warnings.catch_warnings():
            # A head that is not quite at the optimum is a fine start, and training goes on.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(scaled, train.targets)
        heads.append(_unscaled(model, classes, mean, spread))
    outputs = [np.empty((len(valid.targets), classes), np.float32) for _ in heads]
    for rows, batch in valid.placed():
        for (weight, bias), answers in zip(heads, outputs, strict=True):
            answers[rows] = batch @ weight.T + bias
    probes = [Probe(*head, answers) for head, answers in zip(heads, outputs, strict=True)]

    def rank(probe: Probe) -> tuple[float, float]:
        found = evaluate(probe.valid, valid.targets)
        return found[metric], -found["loss"]

    return max(probes, key=rank)


def _scaled(
    features: Features,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Values (N, F), centred and divided by their spread; mean and spread (F,) of each feature."""
    values = np.empty((len(features.targets), features.width), np.float32)
    moments = StandardScaler()
    for rows, batch in features.placed():
        moments.partial_fit(batch)
        values[rows] = batch
    mean, std = moments.mean_.astype(np.float32), np.sqrt(moments.var_).astype(np.float32)
    spread = np.maximum(std, LEAST_SPREAD * np.sqrt(np.square(std).mean()) + 1e-6)
    # In place: of many images one more copy is what takes the most memory of all.
    values -= mean
    values /= spread
    return values, mean, spread


def _unscaled(
    model: LogisticRegression,
    classes: int,
    mean: NDArray[np.float32],
    spread: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weight and bias for features as they come, of a model of scaled ones."""
    coefficients, intercepts = model.coef_, model.intercept_
    if len(model.classes_) == 2:
        # scikit-learn keeps one row for two classes; half of it each way is the same function.
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    weight = np.zeros((classes, len(mean)), np.float32)
    # The logits of the classes that were seen add up to zero, so the largest is above this one.
    bias = np.full(classes, intercepts.min() - 1, np.float32)
    weight[model.classes_] = coefficients / spread
    bias[model.classes_] = intercepts - (coefficients * (mean / spread)).sum(axis=1)
    return weight, bias
