from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sft_mlflow.data.manifest import Sample
from sft_mlflow.data.pixels import PixelSpec
from sft_mlflow.tasks.base import Frame, LossSettings
from sft_mlflow.tasks.classification import CLASSIFICATION

PLAIN = LossSettings(label_smoothing=0.0, class_weights=None)
FRAME = Frame(("a", "b", "c"), PixelSpec(32, "bilinear"))
SAMPLES = [Sample(Path(f"/{n}"), name, str(n), "test") for n, name in enumerate("abcabc")]
TARGETS = torch.tensor([0, 1, 2, 0, 1, 2])
RIGHT = torch.eye(3)[TARGETS] * 5
NO_HEAD = torch.nn.Identity()


@pytest.mark.parametrize(
    ("counts", "metric"),
    [
        ({"a": 29, "b": 10}, "accuracy"),
        ({"a": 30, "b": 10}, "macro_f1"),
        ({"a": 4, "b": 0}, "macro_f1"),
    ],
)
def test_three_to_one_is_imbalanced(counts: dict[str, int], metric: str) -> None:
    assert CLASSIFICATION.judging.objective(counts)[0] == metric


def test_uniform_outputs_lose_the_logarithm_of_the_classes() -> None:
    found = CLASSIFICATION.judging.evaluate(np.zeros((6, 3), np.float32), SAMPLES, FRAME)
    assert found["loss"] == pytest.approx(np.log(3))
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["ece"] == pytest.approx(0)


def test_the_plain_loss_is_the_loss_that_is_evaluated() -> None:
    outputs = RIGHT.roll(1, 1)
    loss = CLASSIFICATION.learning.loss(NO_HEAD, outputs, TARGETS, PLAIN)
    found = CLASSIFICATION.judging.evaluate(outputs.numpy(), SAMPLES, FRAME)
    assert found["loss"] == pytest.approx(loss.item())


def test_smoothing_makes_certainty_costly() -> None:
    smooth = replace(PLAIN, label_smoothing=0.1)
    costly, plain = (
        CLASSIFICATION.learning.loss(NO_HEAD, RIGHT, TARGETS, settings)
        for settings in (smooth, PLAIN)
    )
    assert costly > plain


def test_weights_of_classes_weigh_their_images() -> None:
    outputs = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    targets = torch.tensor([0, 1])
    one, other = -torch.log_softmax(outputs, dim=1)[[0, 1], targets]
    weighted = replace(PLAIN, class_weights=torch.tensor([1.0, 3.0]))
    loss = CLASSIFICATION.learning.loss(NO_HEAD, outputs, targets, weighted)
    assert loss.item() == pytest.approx(((one + 3 * other) / 4).item())
