"""Temperature scaling: probabilities that mean what they say."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.special import softmax as scipy_softmax

# Beyond what networks need. On separable data the search would run away towards zero, and a model
# that happens to be right on a few images would claim to be certain.
LOWEST, HIGHEST = 0.25, 20.0
PRIOR_DEVIATION = 0.5


def softmax(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities (N, classes) in float64 of logits divided by the temperature."""
    result: NDArray[np.float64] = scipy_softmax(logits.astype(np.float64) / temperature, axis=1)
    return result


def fit_temperature(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> float:
    """The temperature with the least negative log likelihood on held-out data.

    Of few images it stays near 1: its logarithm has a normal prior about 0. logits: (N, classes);
    targets: (N,) class indices. Guo et al. 2017, arXiv 1706.04599.
    """
    rows = np.arange(len(targets))

    def loss(log_temperature: float) -> float:
        scaled = logits.astype(np.float64) / np.exp(log_temperature)
        prior = (log_temperature / PRIOR_DEVIATION) ** 2 / 2
        return float(prior - log_softmax(scaled, axis=1)[rows, targets].sum())

    bounds = (np.log(LOWEST), np.log(HIGHEST))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))
