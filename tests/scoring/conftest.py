from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sft_mlflow.sources import model_folder, network, weights
from sft_mlflow.sources.model_folder import Calibration, ModelConfig
from sft_mlflow.sources.source_model import Architecture, Preprocessing
from sft_mlflow.tasks.predictor import Predictor

CLASSES = ("bird", "cat", "dog")


def write_image(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 20, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="session")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of 67 images each: more than three batches in all."""
    root = tmp_path_factory.mktemp("data") / "animals"
    for number, name in enumerate(CLASSES):
        for seed in range(67):
            write_image(root / name / f"{seed:03d}.png", 100 * number + seed)
    return root


@pytest.fixture(scope="session")
def predictor_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of a real network with random weights."""
    torch.manual_seed(0)
    architecture = Architecture("timm", "test_resnet")
    staged = network.bare_network(architecture, len(CLASSES))
    with torch.no_grad():
        # Else the answers of random weights hardly differ from image to image.
        staged.head.weight.mul_(50)
    state_dict = staged.model.state_dict()
    config = ModelConfig(
        task="classification",
        architecture=architecture,
        preprocessing=Preprocessing(32, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        classes=CLASSES,
        calibration=Calibration(temperature=1.5),
        source="made",
        weights_sha256=weights.digest(state_dict),
    )
    folder = tmp_path_factory.mktemp("model")
    model_folder.write(folder, config, state_dict)
    return folder


@pytest.fixture(scope="session")
def predictor(predictor_folder: Path) -> Predictor:
    return Predictor.load(predictor_folder)
