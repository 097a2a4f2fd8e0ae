"""Small real classifiers of coloured noise, and the files that they are packaged as."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from mlflow import MlflowClient
from PIL import Image
from sklearn.linear_model import LogisticRegression

from sft_mlflow.data.loading import load_manifest, save_manifest
from sft_mlflow.data.manifest import Manifest
from sft_mlflow.data.pixels import PixelSpec, pixels_of
from sft_mlflow.sources import model_folder, network, weights
from sft_mlflow.sources.model_folder import Calibration, ModelConfig
from sft_mlflow.sources.source_model import Architecture, Preprocessing

COLOURS = {"blue": (40, 40, 220), "green": (40, 220, 40), "red": (220, 40, 40)}
ARCHITECTURE = Architecture("timm", "test_resnet")
PREPROCESSING = Preprocessing(32, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def write_images(
    folder: Path, per_class: int, *, seed: int, classes: Sequence[str] = tuple(COLOURS)
) -> Path:
    """A folder of class folders with PNG files, each of other content."""
    generator = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            noise = generator.normal(COLOURS[name], 25, size=(32, 32, 3)).clip(0, 255)
            Image.fromarray(noise.astype(np.uint8)).save(folder / name / f"{number:03d}.png")
    return folder


def manifest_of(folder: Path, cache: Path) -> Manifest:
    return load_manifest(str(folder), cache=cache).manifest


def write_model(
    target: Path, manifest: Manifest, *, answers: Mapping[str, str] | None = None, seed: int = 0
) -> Path:
    """A model folder that answers right, or `answers[class]` instead of a class."""
    torch.manual_seed(seed)
    staged = network.bare_network(ARCHITECTURE, len(manifest.classes))
    spec = PixelSpec(PREPROCESSING.size, PREPROCESSING.interpolation)
    samples = manifest.side("train")
    pixels = torch.from_numpy(np.stack([pixels_of(sample.path, spec) for sample in samples]))
    batch = network.normalise(pixels, PREPROCESSING.mean, PREPROCESSING.std)
    with torch.no_grad():
        features = staged.segment(0, staged.full_depth)(batch)
        while features.ndim > 2:
            features = features.mean(-1)
    said = [(answers or {}).get(sample.label, sample.label) for sample in samples]
    fitted = LogisticRegression(max_iter=1000).fit(features.numpy(), said)
    with torch.no_grad():
        staged.head.weight.zero_()
        staged.head.bias.fill_(-100.0)
        for row, name in enumerate(fitted.classes_):
            place = manifest.classes.index(name)
            one = len(fitted.classes_) == 2
            sign = (1.0 if row else -1.0) if one else 1.0
            source = 0 if one else row
            staged.head.weight[place] = sign * torch.from_numpy(fitted.coef_[source])
            staged.head.bias[place] = sign * float(fitted.intercept_[source])
    state_dict = staged.model.state_dict()
    config = ModelConfig(
        task="classification",
        architecture=ARCHITECTURE,
        preprocessing=PREPROCESSING,
        classes=manifest.classes,
        calibration=Calibration(temperature=1.0),
        source="made",
        weights_sha256=weights.digest(state_dict),
    )
    model_folder.write(target, config, state_dict)
    save_manifest(manifest, target / "manifest.parquet")
    return target


def log_model(
    client: MlflowClient, experiment_id: str, folder: Path, *, name: str = "model"
) -> tuple[str, str]:
    """Ids of a run and of the LoggedModel that it logged, packaged from the model folder."""
    run_id = client.create_run(experiment_id).info.run_id
    logged = client.create_logged_model(
        experiment_id,
        name=name,
        source_run_id=run_id,
        tags={"sft.task": "classification", "sft.data_digest": "0" * 64, "other": "tag"},
    )
    packaged = folder.with_name(f"{folder.name}-packaged")
    shutil.copytree(folder, packaged / "artifacts" / "model", dirs_exist_ok=True)
    (packaged / "MLmodel").write_text("flavors: {}\n")
    client.log_model_artifacts(logged.model_id, str(packaged))
    client.finalize_logged_model(logged.model_id, "READY")
    return run_id, logged.model_id


def register(
    client: MlflowClient, name: str, model_id: str, run_id: str, *, alias: str = ""
) -> str:
    """The new version of the registered model."""
    if not any(model.name == name for model in client.search_registered_models()):
        client.create_registered_model(name)
    version = client.create_model_version(
        name, source=f"models:/{model_id}", run_id=run_id, model_id=model_id
    )
    if alias:
        client.set_registered_model_alias(name, alias, str(version.version))
    return str(version.version)
