from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sft_mlflow.errors import DataError
from sft_mlflow.sources.network import StagedNetwork
from sft_mlflow.tasks.classification import CLASSIFICATION
from sft_mlflow.tasks.classification.judging import figures_of
from sft_mlflow.training.fit import judged
from sft_mlflow.training.head_start import HeadStart
from sft_mlflow.training.probe import ITERATIONS, STRENGTHS, Features, Probe, fit_probe

from .conftest import FRAME, RECIPE, Digits

Both = tuple[Features, Features]


def features_of(values: NDArray[np.float32], targets: NDArray[np.int64]) -> Features:
    """In batches of which the last is smaller."""
    return Features(np.split(values, range(50, len(values), 50)), values.shape[1], targets)


def values_of(features: Features) -> NDArray[np.float32]:
    return np.concatenate(list(features.batches))


def only(features: Features, *classes: int) -> Features:
    rows = np.isin(features.targets, classes)
    return features_of(values_of(features)[rows], features.targets[rows])


def pipelines(
    train: Features, weights: dict[int, float] | None = None
) -> list[NDArray[np.float64]]:
    """Probability function of scikit-learn's own pipeline, for each strength."""
    found = []
    for strength in STRENGTHS:
        logistic = LogisticRegression(C=strength, max_iter=ITERATIONS, class_weight=weights)
        pipeline = make_pipeline(StandardScaler(), logistic)
        found.append(pipeline.fit(values_of(train), train.targets))
    return found


def logits_of(probe: Probe, features: Features) -> NDArray[np.float32]:
    return values_of(features) @ probe.weight.T + probe.bias


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(torch.from_numpy(logits).double().softmax(1))


@pytest.mark.parametrize("classes", [(0, 1, 2), (0, 1)])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_probe_is_the_best_of_scikit_learns_pipelines(
    classes: tuple[int, ...], weighted: bool, train_features: Both
) -> None:
    train, valid = (only(side, *classes) for side in train_features)
    weights = (0.5, 1.0, 2.0)[: len(classes)] if weighted else None
    probe = fit_probe(train, valid, len(classes), weights, figures_of, "accuracy")
    candidates = pipelines(train, dict(enumerate(weights)) if weights else None)
    values = values_of(valid)
    expected = max(
        candidates,
        key=lambda p: (
            p.score(values, valid.targets),
            p.predict_log_proba(values)[np.arange(len(valid.targets)), valid.targets].mean(),
        ),
    )
    assert probe.weight.shape == (len(classes), 1024)
    probabilities = softmax(logits_of(probe, valid))
    assert np.allclose(probabilities, expected.predict_proba(values), atol=2e-3)
    assert np.array_equal(probabilities.argmax(1), expected.predict(values))
    assert figures_of(logits_of(probe, train), train.targets)["accuracy"] > 0.9


def test_the_head_with_the_probe_in_it_gives_the_probes_logits(
    probe: Probe, train_features: Both, new_network: Callable[[], StagedNetwork], digits: Digits
) -> None:
    network = new_network()
    probe.as_start().copy_into(network.head)
    batches = digits.batches(replace(RECIPE, depth=0), network)
    outputs, _ = judged(network.head, network.suffix(0), batches, CLASSIFICATION, FRAME)
    assert np.allclose(outputs, logits_of(probe, train_features[1]), rtol=1e-4, atol=1e-4)
    assert np.array_equal(probe.valid, logits_of(probe, train_features[1]))
    assert batches.validated == digits.valid.samples


def test_features_are_gone_through_once(train_features: Both, probe: Probe) -> None:
    once = [
        Features(iter(values_of(side)[:, np.newaxis]), side.width, side.targets)
        for side in train_features
    ]
    found = fit_probe(once[0], once[1], 3, None, figures_of, "accuracy")
    assert np.allclose(found.valid, probe.valid, atol=1e-3)


@pytest.mark.parametrize("seen", [(0, 2), (1, 2), (0, 1)])
def test_a_class_without_training_images_is_never_the_answer(
    seen: tuple[int, ...], train_features: Both
) -> None:
    train, valid = train_features
    probe = fit_probe(only(train, *seen), valid, 3, (1.0, 1.0, 1.0), figures_of, "accuracy")
    assert set(logits_of(probe, train).argmax(1)) == set(seen)
    assert set(logits_of(probe, valid).argmax(1)) <= set(seen)


def test_one_of_four_classes_without_training_images_is_never_the_answer(
    train_features: Both,
) -> None:
    train, valid = train_features
    probe = fit_probe(train, valid, 4, None, figures_of, "macro_f1")
    assert 3 not in logits_of(probe, valid).argmax(1)
    three = fit_probe(train, valid, 3, None, figures_of, "macro_f1")
    assert np.array_equal(logits_of(probe, valid).argmax(1), logits_of(three, valid).argmax(1))


def test_training_images_of_one_class_alone_are_refused(train_features: Both) -> None:
    train, valid = train_features
    with pytest.raises(DataError, match="one class only"):
        fit_probe(only(train, 1), valid, 3, None, figures_of, "accuracy")


def test_a_feature_that_never_changes_does_no_harm(train_features: Both) -> None:
    train, valid = train_features

    def with_constant(side: Features) -> Features:
        constant = np.full((len(side.targets), 1), 7, np.float32)
        return features_of(np.concatenate([values_of(side), constant], axis=1), side.targets)

    probe = fit_probe(with_constant(train), with_constant(valid), 3, None, figures_of, "accuracy")
    outputs = logits_of(probe, with_constant(valid))
    assert np.isfinite(outputs).all()
    without = fit_probe(train, valid, 3, None, figures_of, "accuracy")
    assert np.allclose(softmax(outputs), softmax(logits_of(without, valid)), atol=1e-2)


def test_a_probe_comes_back_from_its_file_and_into_a_head(probe: Probe, tmp_path: Path) -> None:
    probe.as_start().save(tmp_path / "probe.safetensors")
    loaded = HeadStart.load(tmp_path / "probe.safetensors")
    head = torch.nn.Linear(*probe.weight.T.shape)
    loaded.copy_into(head)
    assert np.array_equal(head.weight.detach().numpy(), probe.weight)
    assert np.array_equal(head.bias.detach().numpy(), probe.bias)
    assert loaded.evidence is not None
    assert np.array_equal(loaded.evidence, probe.valid)


def test_a_feature_that_hardly_varies_gets_no_large_weight() -> None:
    generator = np.random.default_rng(0)
    targets = np.arange(90) % 3
    values = generator.normal(size=(90, 8)).astype(np.float32)
    values[:, 0] += 2 * targets
    # A trace of the class where the frozen network hardly ever answers.
    values[:, 1] = 1e-4 * (targets == 2) + 1e-5 * generator.normal(size=90)
    features = features_of(values, targets)
    probe = fit_probe(features, features, 3, None, figures_of, "accuracy")
    assert figures_of(probe.valid, targets)["accuracy"] > 0.7
    assert np.abs(probe.weight[:, 1]).max() < np.abs(probe.weight[:, 0]).max()
