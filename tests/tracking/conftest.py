from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from sft_mlflow.data.manifest import Manifest

from . import made_models


@pytest.fixture
def client(migrated_store: Path, tmp_path: Path) -> Iterator[MlflowClient]:
    """A client of a store of the test's own, which is the process's own address too."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    shutil.copyfile(migrated_store, tmp_path / "mlflow.db")
    # As in every command: the SQL registry looks up the source of a new version at the process's
    # address, not at the client's.
    mlflow.set_tracking_uri(uri)
    yield MlflowClient(tracking_uri=uri)
    mlflow.set_tracking_uri(None)


@pytest.fixture
def experiment_id(client: MlflowClient, tmp_path: Path) -> str:
    return client.create_experiment("tests", artifact_location=str(tmp_path / "artifacts"))


@pytest.fixture
def run_id(client: MlflowClient, experiment_id: str) -> str:
    """The run that a command got."""
    return client.create_run(experiment_id).info.run_id


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("colours")
    images = made_models.write_images(root / "images", 30, seed=0)
    return made_models.manifest_of(images, root / "cache")


@pytest.fixture(scope="session")
def good_folder(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest) -> Path:
    return made_models.write_model(tmp_path_factory.mktemp("good") / "model", manifest)


@pytest.fixture(scope="session")
def other_good_folder(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest) -> Path:
    """Other weights that answer right as well."""
    return made_models.write_model(tmp_path_factory.mktemp("other") / "model", manifest, seed=1)


@pytest.fixture(scope="session")
def bad_folder(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest) -> Path:
    """Takes green for red and red for green."""
    swapped = {"green": "red", "red": "green"}
    target = tmp_path_factory.mktemp("bad") / "model"
    return made_models.write_model(target, manifest, answers=swapped)
