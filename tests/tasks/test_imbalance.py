from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from sft_mlflow.tasks.imbalance import weights


def test_weights_of_classes_are_the_root_of_balanced_ones_with_mean_one_over_images() -> None:
    counts = [100, 25, 4]
    found = weights(counts)
    labels = [i for i, count in enumerate(counts) for _ in range(count)]
    balanced = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert [w / found[0] for w in found] == pytest.approx(
        [math.sqrt(b / balanced[0]) for b in balanced]
    )
    assert sum(found[label] for label in labels) / len(labels) == pytest.approx(1)
    # By hand: 1/10, 1/5 and 1/2, of which the mean over images is (10 + 5 + 2) / 129.
    assert found == pytest.approx([w * 129 / 17 for w in (0.1, 0.2, 0.5)])


def test_classes_of_the_same_size_weigh_one() -> None:
    assert weights([7, 7]) == pytest.approx((1.0, 1.0))


def test_a_class_without_images_weighs_as_one_with_a_single_image() -> None:
    empty, single = (weights([9, count]) for count in (0, 1))
    assert empty == single
