from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import softmax

from sft_mlflow.sources import model_folder, network, weights
from sft_mlflow.sources.model_folder import Calibration, ModelConfig
from sft_mlflow.sources.source_model import Architecture, Preprocessing
from sft_mlflow.tasks.classification import calibration
from sft_mlflow.tasks.predictor import Predictor

TEMPERATURE = 1.7
# What passes through the network at once at this size.
BATCH = 64


def logits(predictor: Predictor, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Divided by the temperature."""
    return np.stack(predictor.answers(pixels, [(32, 32)] * len(pixels)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    architecture = Architecture("torchvision", "shufflenet_v2_x0_5")
    staged = network.bare_network(architecture, 3)
    # With statistics of its own data, else the answers of random weights hardly differ.
    for module in staged.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train().momentum = 1.0
    with torch.no_grad():
        staged.model(torch.randn(16, 3, 32, 32))
    state_dict = staged.model.state_dict()
    config = ModelConfig(
        task="classification",
        architecture=architecture,
        preprocessing=Preprocessing(32, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        classes=("a", "b", "c"),
        calibration=Calibration(temperature=TEMPERATURE),
        source="made",
        weights_sha256=weights.digest(state_dict),
    )
    target = tmp_path_factory.mktemp("model")
    model_folder.write(target, config, state_dict)
    return target


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return Predictor.load(folder)


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    """One batch and a half."""
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (BATCH * 3 // 2, 32, 32, 3), np.uint8)


def test_an_image_answers_to_the_bit_alone_and_in_any_company(
    predictor: Predictor, pixels: NDArray[np.uint8]
) -> None:
    together = logits(predictor, pixels)
    assert len(np.unique(together[:, 0])) == len(pixels)
    for row in (0, 1, BATCH - 1, BATCH, len(pixels) - 1):
        assert np.array_equal(logits(predictor, pixels[row : row + 1])[0], together[row])


def test_an_image_answers_to_the_bit_at_any_position(
    predictor: Predictor, pixels: NDArray[np.uint8]
) -> None:
    together = logits(predictor, pixels)
    order = np.random.default_rng(1).permutation(len(pixels))
    assert np.array_equal(logits(predictor, pixels[order]), together[order])
    same = np.repeat(pixels[:1], BATCH, axis=0)
    assert np.array_equal(logits(predictor, same), np.repeat(together[:1], BATCH, axis=0))


def test_the_answer_is_that_of_the_plain_network(
    folder: Path, predictor: Predictor, pixels: NDArray[np.uint8]
) -> None:
    plain = network.bare_network(Architecture("torchvision", "shufflenet_v2_x0_5"), 3).model
    plain.load_state_dict(model_folder.read_weights(folder, model_folder.read_config(folder)))
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    with torch.no_grad():
        expected = plain(images).numpy()
    found = logits(predictor, pixels)
    assert np.allclose(found * TEMPERATURE, expected, rtol=1e-4, atol=1e-4)
    assert np.allclose(
        calibration.softmax(found), softmax(expected / TEMPERATURE, axis=1), atol=1e-4
    )


def test_no_images_give_no_rows(predictor: Predictor) -> None:
    nothing = np.empty((0, 32, 32, 3), np.uint8)
    assert predictor.answers(nothing, []) == []
