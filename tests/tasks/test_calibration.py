from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sft_mlflow.tasks.classification import calibration, metrics


def made(temperature: float) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits, and targets drawn from their softmax at the temperature."""
    generator = np.random.default_rng(0)
    logits = generator.normal(scale=3, size=(20_000, 4)).astype(np.float32)
    # The largest of logits plus Gumbel noise is a draw from their softmax.
    noise = generator.gumbel(size=logits.shape)
    return logits, (logits / temperature + noise).argmax(axis=1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 5.0])
def test_the_temperature_of_the_data_is_found(temperature: float) -> None:
    assert calibration.fit_temperature(*made(temperature)) == pytest.approx(temperature, rel=0.05)


def test_scaling_lowers_loss_and_calibration_error_and_keeps_every_answer() -> None:
    logits, targets = made(3.0)
    before = calibration.softmax(logits)
    after = calibration.softmax(logits, calibration.fit_temperature(logits, targets))
    assert metrics.negative_log_likelihood(after, targets) < metrics.negative_log_likelihood(
        before, targets
    )
    error = metrics.expected_calibration_error(after, targets)
    assert error < 0.02 < metrics.expected_calibration_error(before, targets)
    assert np.array_equal(after.argmax(axis=1), before.argmax(axis=1))


def test_few_images_leave_the_temperature_near_one_and_many_do_not() -> None:
    logits, targets = made(5.0)
    few, some, all_of_them = (
        calibration.fit_temperature(logits[:n], targets[:n]) for n in (5, 50, 20_000)
    )
    assert 1 < few < some < all_of_them


def test_logits_that_are_always_right_do_not_send_the_temperature_to_zero() -> None:
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2]] * 10
    assert calibration.fit_temperature(logits, np.array([0, 1, 2])) >= calibration.LOWEST


def test_probabilities_of_huge_logits_are_finite_and_add_up_to_one() -> None:
    probabilities = calibration.softmax(np.array([[3e4, -3e4, 0.0]], np.float32))
    assert probabilities.tolist() == [[1, 0, 0]]
    assert calibration.softmax(np.zeros((2, 5), np.float32)).sum(axis=1) == pytest.approx([1, 1])
