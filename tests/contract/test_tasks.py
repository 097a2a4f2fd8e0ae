"""What holds for every task: a new one is tested by being listed in TASKS."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sft_mlflow.tasks import TASKS
from sft_mlflow.tasks.base import Task
from sft_mlflow.training.recipe import LossSettings

PLAIN = LossSettings(label_smoothing=0.0, class_weights=None)
CLASSES = ("a", "b", "c")
TARGETS = np.array([0, 1, 2, 0, 1, 2])
RIGHT = np.eye(3, dtype=np.float32)[TARGETS] * 5
WRONG = np.roll(RIGHT, 1, axis=1)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
class TestTask:
    def test_its_name_is_its_place_in_the_list(self, task: Task) -> None:
        assert TASKS[task.name] is task

    @pytest.mark.parametrize("counts", [{"a": 5, "b": 5}, {"a": 500, "b": 1}, {"a": 3, "b": 0}])
    def test_its_objective_is_one_of_its_metrics_and_has_a_reason(
        self, task: Task, counts: dict[str, int]
    ) -> None:
        metric, reason = task.objective(counts)
        assert metric in task.metrics
        assert reason

    def test_every_metric_is_evaluated_and_is_larger_for_better_outputs(self, task: Task) -> None:
        good = task.evaluate(RIGHT, TARGETS, CLASSES)
        bad = task.evaluate(WRONG, TARGETS, CLASSES)
        assert {*task.metrics, "loss"} <= good.keys() == bad.keys()
        assert all(good[metric] > bad[metric] for metric in task.metrics)
        assert good["loss"] < bad["loss"]

    def test_its_loss_is_a_scalar_that_gradients_go_through(self, task: Task) -> None:
        outputs = torch.from_numpy(WRONG).requires_grad_()
        loss = task.loss(outputs, torch.from_numpy(TARGETS), PLAIN)
        assert loss.shape == ()
        loss.backward()
        assert outputs.grad is not None
        assert outputs.grad.abs().sum() > 0

    def test_its_plain_loss_is_the_loss_that_it_evaluates(self, task: Task) -> None:
        loss = task.loss(torch.from_numpy(WRONG), torch.from_numpy(TARGETS), PLAIN)
        assert task.evaluate(WRONG, TARGETS, CLASSES)["loss"] == pytest.approx(loss.item())

    def test_its_loss_is_float32_for_outputs_in_bfloat16(self, task: Task) -> None:
        short = torch.from_numpy(RIGHT).bfloat16()
        assert task.loss(short, torch.from_numpy(TARGETS), PLAIN).dtype == torch.float32

    def test_smoothing_makes_certainty_costly(self, task: Task) -> None:
        outputs, targets = torch.from_numpy(RIGHT), torch.from_numpy(TARGETS)
        smooth = replace(PLAIN, label_smoothing=0.1)
        assert task.loss(outputs, targets, smooth) > task.loss(outputs, targets, PLAIN)


class TestClassification:
    @pytest.mark.parametrize(
        ("counts", "metric"),
        [
            ({"a": 29, "b": 10}, "accuracy"),
            ({"a": 30, "b": 10}, "macro_f1"),
            ({"a": 4, "b": 0}, "macro_f1"),
        ],
    )
    def test_three_to_one_is_imbalanced(self, counts: dict[str, int], metric: str) -> None:
        assert TASKS["classification"].objective(counts)[0] == metric

    def test_uniform_outputs_lose_the_logarithm_of_the_classes(self) -> None:
        found = TASKS["classification"].evaluate(np.zeros((6, 3), np.float32), TARGETS, CLASSES)
        assert found["loss"] == pytest.approx(np.log(3))
        assert found["accuracy"] == pytest.approx(1 / 3)
        assert found["ece"] == pytest.approx(0)

    def test_weights_of_classes_weigh_their_images(self) -> None:
        outputs = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
        targets = torch.tensor([0, 1])
        one, other = -torch.log_softmax(outputs, dim=1)[[0, 1], targets]
        weighted = replace(PLAIN, class_weights=torch.tensor([1.0, 3.0]))
        loss = TASKS["classification"].loss(outputs, targets, weighted)
        assert loss.item() == pytest.approx(((one + 3 * other) / 4).item())
