"""Which images are worth a look."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def worst_and_middle(
    merits: Sequence[float], most: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of the lowest merits, the lowest first, and of those about the median; none is in both.

    most: of each.
    """
    order = np.argsort(merits, kind="stable")
    worst = order[:most]
    middle = max(len(worst), len(order) // 2 - most // 2)
    return worst, order[middle : middle + most]
