"""The mean of the weights over the last steps, which is better and steadier than the last ones.

At a learning rate that pays in the end, single epochs look bad on the way there; their mean tells
early how good a trial is, which pruning and early stopping rely on (Polyak & Juditsky 1992;
docs/performance.md has the figures).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Average:
    """Exponential moving average of tensors that change in place.

    steps: over which it reaches back; up to 1, it is the tensors as they are. updates: how many
    steps an earlier attempt had averaged.
    """

    def __init__(self, tensors: Mapping[str, Tensor], steps: float, updates: int = 0) -> None:
        self._tensors = tensors
        self._steps = steps
        self._updates = updates
        # Without an average to keep, nothing is copied: it is those tensors.
        self._averages = steps > 1
        self.values = copies(tensors) if self._averages else tensors

    @torch.no_grad()
    def update(self) -> None:
        """Take in the tensors as they are after a step."""
        if not self._averages:
            return
        self._updates += 1
        # At first the plain mean, so that it does not hang on where training began.
        weight = max(1 / self._steps, 1 / (self._updates + 1))
        for name, tensor in self._tensors.items():
            if tensor.is_floating_point():
                self.values[name].lerp_(tensor, weight)
            else:
                self.values[name].copy_(tensor)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averages in place of the tensors, which come back to the bit."""
        if not self._averages:
            yield
            return
        kept = copies(self._tensors)
        copy(self.values, self._tensors)
        try:
            yield
        finally:
            copy(kept, self._tensors)


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as they are now."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def copy(values: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
    """Set the tensors to the values of the same names."""
    for name, tensor in into.items():
        tensor.copy_(values[name])
