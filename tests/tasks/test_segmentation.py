from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score
from torch.nn import functional as F

from sft_mlflow.data.masks import IGNORED
from sft_mlflow.sources import architectures
from sft_mlflow.sources.feature_maps import network_with_maps
from sft_mlflow.sources.uri import resolve
from sft_mlflow.tasks.segmentation.head import SemanticFpn
from sft_mlflow.tasks.segmentation.metrics import counted, per_class, summary

CLASSES = ("road", "sky", "tree", "car")


def masks(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true classes of a mask; a fifth of the truth is ignored, one class absent."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 3, (20, 30)).astype(np.uint8)
    predicted = np.where(generator.random((20, 30)) < 0.6, truth, (truth + 1) % 3).astype(np.uint8)
    truth[generator.random((20, 30)) < 0.2] = IGNORED
    return predicted, truth


def test_the_figures_are_those_of_scikit_learn_over_all_pixels() -> None:
    pairs = [masks(seed) for seed in range(3)]
    counts = sum(counted(predicted, truth, len(CLASSES)) for predicted, truth in pairs)
    predicted, truth = (np.concatenate([p[i].ravel() for p in pairs]) for i in (0, 1))
    known = truth != IGNORED
    each = jaccard_score(truth[known], predicted[known], average=None, labels=[0, 1, 2])
    found = summary(counts)
    assert found["miou"] == pytest.approx(each.mean())
    assert found["pixel_accuracy"] == pytest.approx(accuracy_score(truth[known], predicted[known]))
    # A class that occurs nowhere is in no mean.
    assert per_class(counts, CLASSES) == pytest.approx(dict(zip(CLASSES, each, strict=False)))


def test_a_mask_that_is_all_ignored_counts_for_nothing() -> None:
    counts = counted(np.zeros((4, 4), np.uint8), np.full((4, 4), IGNORED, np.uint8), 2)
    assert not counts.any()
    assert summary(counts) == {"miou": 0.0, "pixel_accuracy": 0.0}


def test_the_head_learns_where_things_are() -> None:
    """Left and right halves of noise are two classes: no pixel tells, only its place does."""
    torch.manual_seed(0)
    source = resolve("embedded://efficientnet_lite0")
    model = architectures.build(source.architecture)
    architectures.load(model, source.state_dict, source.uri)
    network = network_with_maps(model, (8, 16, 32), lambda maps: SemanticFpn(maps, 2, 32))
    network.freeze(0)
    images = torch.rand(4, 3, 64, 96) * 0.3
    images[:, 2, :, 48:] += 1
    truth = torch.zeros(4, 64, 96, dtype=torch.long)
    truth[:, :, 48:] = 1
    suffix = network.suffix(0)
    point = network.full_depth
    with torch.no_grad():
        given = [network.segment(0, at)(images) for at in network.inputs(point)]
    optimizer = torch.optim.AdamW(network.head.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        logits = suffix(*given)
        assert logits.shape == (4, 2, 8, 12)
        large = F.interpolate(logits, (64, 96), mode="bilinear", align_corners=False)
        loss = F.cross_entropy(large, truth, ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    right = (large.argmax(1) == truth).float().mean()
    assert right > 0.95
