from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import nn

from sft_mlflow.training import optimisers

from .conftest import RECIPE


def stages() -> list[list[nn.Parameter]]:
    return [[*nn.Linear(3, 3).parameters()] for _ in range(4)]


def factors(steps: int, warmup: float) -> list[float]:
    """The learning rate's share of its peak at each step, and after the last one."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = optimisers.schedule(optimizer, steps, warmup)
    found = []
    for _ in range(steps + 1):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


def test_the_learning_rate_rises_in_a_line_and_falls_as_a_cosine_to_zero() -> None:
    found = factors(100, 0.1)
    assert found[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert found[10] == pytest.approx(1)
    # Half way down a half cosine is one half.
    assert found[55] == pytest.approx(0.5)
    assert found[100] == pytest.approx(0)
    assert found[10:] == sorted(found[10:], reverse=True)
    assert max(found) == pytest.approx(1)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_schedule_of_few_steps_still_trains(steps: int) -> None:
    assert all(0 < factor <= 1 for factor in factors(steps, 0.1)[:steps])


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_each_stage_learns_slower_than_the_one_above(name: Literal["adamw", "sgd"]) -> None:
    parameters = stages()
    recipe = replace(RECIPE, optimizer=name, layer_decay=0.5, weight_decay=0.1)
    optimizer = optimisers.optimiser(parameters, recipe, 0.8)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert [rates[id(weight)] for weight, _ in parameters] == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert [rates[id(bias)] for _, bias in parameters] == pytest.approx([0.1, 0.2, 0.4, 0.8])


def test_the_head_is_the_first_group_whose_rate_is_logged() -> None:
    parameters = stages()
    optimizer = optimisers.optimiser(parameters, RECIPE, 0.8)
    assert optimizer.param_groups[0]["params"][0] is parameters[-1][0]


def test_norms_and_biases_do_not_decay() -> None:
    parameters = [[*nn.Conv2d(3, 3, 1).parameters(), *nn.BatchNorm2d(3).parameters()]]
    optimizer = optimisers.optimiser(parameters, replace(RECIPE, weight_decay=0.1), 0.1)
    decay = {p.ndim: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay == {4: 0.1, 1: 0.0}


def test_sgd_has_the_recipes_momentum() -> None:
    optimizer = optimisers.optimiser(stages(), replace(RECIPE, optimizer="sgd"), 0.1)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}
