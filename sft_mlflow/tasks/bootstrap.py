"""Intervals of figures by drawing images with replacement (Davison & Hinkley 1997, section 5.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from sft_mlflow.tasks.figures import Interval

CONFIDENCE = 0.95
# At each end, in percent.
TAIL = (1 - CONFIDENCE) / 2 * 100


def resampled(images: int, resamples: int, seed: int) -> Iterator[NDArray[np.intp]]:
    """Rows of as many images as there are, drawn with replacement, so many times."""
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        yield generator.integers(images, size=images)


def interval(value: float, drawn: Sequence[float]) -> Interval:
    """The basic interval of 95 % about a figure in [0, 1], from what it is in each resample.

    Basic and not of percentiles: average precision is larger where images are drawn twice, and
    the figure itself would stand at the end of such an interval or outside of it.
    """
    low, high = 2 * value - np.nanpercentile(drawn, [100 - TAIL, TAIL])
    return Interval(value, float(max(0.0, low)), float(min(1.0, high)))
