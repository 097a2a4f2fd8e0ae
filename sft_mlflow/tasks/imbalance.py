"""Rare classes, weighed up."""

from __future__ import annotations

import math
from collections.abc import Iterable


def weights(counts: Iterable[int]) -> tuple[float, ...]:
    """Weight of each class, inverse to the square root of its count, with mean 1 over images.

    The square root is the middle between none and full balance: with full balance a class of
    three images shakes the network as much as one of three hundred.
    """
    numbers = [max(1, count) for count in counts]
    raw = [1 / math.sqrt(n) for n in numbers]
    mean = sum(w * n for w, n in zip(raw, numbers, strict=True)) / sum(numbers)
    return tuple(w / mean for w in raw)
