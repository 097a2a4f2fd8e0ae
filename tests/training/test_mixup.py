from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from sft_mlflow.training import mixup
from sft_mlflow.training.mixup import Mix
from sft_mlflow.training.randomness import keyed

CPU = torch.device("cpu")


def test_a_mix_blends_values_with_their_partners() -> None:
    values = torch.tensor([[0.0, 4.0], [8.0, 0.0]])
    mix = Mix(0.75, torch.tensor([1, 0]))
    [blended] = mix.blend((values,))
    assert torch.equal(blended, torch.tensor([[2.0, 3.0], [6.0, 1.0]]))


def test_the_loss_is_that_of_soft_targets() -> None:
    outputs, targets = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    mix = Mix(0.3, torch.tensor([2, 3, 0, 1]))
    one_hot = F.one_hot(targets, 3).float()
    soft = 0.3 * one_hot + 0.7 * one_hot[mix.partner]
    found = mix.loss(partial(F.cross_entropy, outputs), targets)
    assert found == pytest.approx(F.cross_entropy(outputs, soft).item())


def test_without_alpha_nothing_is_blended_and_nothing_drawn() -> None:
    before = torch.get_rng_state()
    mix = mixup.draw(0.0, 4, CPU)
    values = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert mix.blend((values,))[0] is values
    assert mix.loss(lambda targets: targets.float().sum(), torch.arange(4)) == 6


def test_shares_have_the_spread_of_their_beta_distribution() -> None:
    with keyed(0):
        shares = torch.tensor([mixup.draw(0.4, 2, CPU).share for _ in range(2000)])
    # Of Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1)).
    assert shares.mean().item() == pytest.approx(0.5, abs=0.03)
    assert shares.var().item() == pytest.approx(1 / (4 * 1.8), rel=0.08)
