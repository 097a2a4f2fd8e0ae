"""Mixup: every image of a batch is blended with another one, and so is the loss.

At the pixels it is that of Zhang et al. 2018 (arXiv 1710.09412); where training begins at a cut
inside the network, their values are blended there (Verma et al. 2019, arXiv 1806.05236). So it
works on what the store keeps, and asks for no new forward pass of frozen stages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mix:
    """share: of the image itself; partner: for each image the other one, None for no blending."""

    share: float
    partner: Tensor | None

    def blend(self, values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Values (B, …) of the batch, each with its partner's."""
        if self.partner is None:
            return values
        return tuple(some.lerp(some[self.partner], 1 - self.share) for some in values)

    def loss(self, of: Callable[[Tensor], Tensor], targets: Tensor) -> Tensor:
        """The mean loss, given what it is for targets (B,)."""
        if self.partner is None:
            return of(targets)
        partners = targets[self.partner.to(targets.device)]
        return self.share * of(targets) + (1 - self.share) * of(partners)


def draw(alpha: float, images: int, device: torch.device) -> Mix:
    """A mix from torch's global generator. alpha: of the Beta distribution, 0 for no blending."""
    if not alpha:
        return Mix(1.0, None)
    partner = torch.randperm(images).to(device)
    return Mix(float(torch.distributions.Beta(alpha, alpha).sample()), partner)
