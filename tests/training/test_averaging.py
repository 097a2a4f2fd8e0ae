from __future__ import annotations

import pytest
import torch
from torch.optim.swa_utils import get_ema_avg_fn

from sft_mlflow.training.averaging import Average


def walk(average: Average, tensor: torch.Tensor, values: list[float]) -> None:
    for value in values:
        tensor.fill_(value)
        average.update()


def test_the_first_steps_are_a_plain_mean_that_begins_with_the_start() -> None:
    tensor = torch.tensor([6.0])
    average = Average({"w": tensor}, steps=100)
    walk(average, tensor, [1.0, 2.0, 3.0])
    assert average.values["w"].item() == pytest.approx((6 + 1 + 2 + 3) / 4)


def test_later_steps_are_torchs_exponential_average() -> None:
    generator = torch.Generator().manual_seed(0)
    tensor = torch.zeros(5)
    average = Average({"w": tensor}, steps=10, updates=1000)
    function, expected = get_ema_avg_fn(0.9), torch.zeros(5)
    for step in range(20):
        tensor.copy_(torch.randn(5, generator=generator))
        average.update()
        expected = function(expected, tensor, torch.tensor(step))
    assert torch.allclose(average.values["w"], expected, atol=1e-6)


@pytest.mark.parametrize("steps", [0, 1])
def test_without_steps_to_reach_back_it_is_the_tensor_itself(steps: float) -> None:
    tensor, count = torch.zeros(1), torch.tensor(0)
    average = Average({"w": tensor, "n": count}, steps)
    walk(average, tensor, [3.0, 0.1])
    count += 1
    average.update()
    assert torch.equal(average.values["w"], tensor)
    assert average.values["n"] == 1


def test_the_tensors_come_back_to_the_bit_after_the_averages_took_their_place() -> None:
    tensor = torch.tensor([0.1, 0.2])
    average = Average({"w": tensor}, steps=4)
    walk(average, tensor, [0.3])
    before = tensor.clone()
    with average.applied():
        assert torch.equal(tensor, average.values["w"])
        assert not torch.equal(tensor, before)
    assert torch.equal(tensor, before)
