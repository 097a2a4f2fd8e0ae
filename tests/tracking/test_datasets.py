from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.data.dataset_source_registry import get_dataset_source_from_json
from mlflow.entities import DatasetInput

from sft_mlflow.data.manifest import Manifest
from sft_mlflow.errors import DataError, OptionsError
from sft_mlflow.tracking.datasets import ImageDatasetSource, dataset_of

from . import made_models


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return made_models.write_images(tmp_path / "images", 3, seed=1)


def test_a_folder_has_name_digest_schema_and_profile(images: Path) -> None:
    dataset = mlflow.data.from_image_folder(images)
    shown = dataset.to_dict()
    assert shown["name"] == "images"
    assert json.loads(shown["profile"]) == {
        "num_rows": 9,
        "num_classes": 3,
        "images_by_class": {"blue": 3, "green": 3, "red": 3},
        "images_by_split": {},
    }
    columns = json.loads(shown["schema"])["mlflow_colspec"]
    assert [(c["name"], c["type"]) for c in columns] == [("image", "binary"), ("label", "string")]
    assert len(shown["digest"]) <= 36


def test_the_digest_is_of_the_content_and_not_of_the_place(images: Path, tmp_path: Path) -> None:
    before = mlflow.data.from_image_folder(images).digest
    moved = images.rename(tmp_path / "moved")
    assert mlflow.data.from_image_folder(moved).digest == before
    (moved / "red" / "000.png").rename(moved / "blue" / "100.png")
    assert mlflow.data.from_image_folder(moved).digest != before


def test_a_table_and_the_folder_of_the_same_images_have_the_same_digest(images: Path) -> None:
    table = images.parent / "table.csv"
    rows = [f"{p.relative_to(images.parent)},{p.parent.name}" for p in images.rglob("*.png")]
    table.write_text("\n".join(["path,label", *rows]))
    assert (
        mlflow.data.from_image_table(table).digest == mlflow.data.from_image_folder(images).digest
    )


def test_names_and_digests_that_are_given_are_kept(images: Path) -> None:
    dataset = mlflow.data.from_image_folder(str(images), name="mine", digest="abc")
    assert (dataset.name, dataset.digest) == ("mine", "abc")


def test_what_is_no_folder_or_table_is_refused(images: Path) -> None:
    with pytest.raises(OptionsError, match="Check the path"):
        mlflow.data.from_image_folder(images / "missing")
    with pytest.raises(DataError, match="no images"):
        mlflow.data.from_image_folder(images / "red")


def test_the_data_set_of_a_study_is_logged_and_its_source_read_back(
    client: MlflowClient, run_id: str, manifest: Manifest
) -> None:
    dataset = dataset_of(manifest)
    assert manifest.digest.startswith(dataset.digest)
    assert dataset.profile["images_by_split"]["test"] == len(manifest.side("test"))
    client.log_inputs(run_id, [DatasetInput(dataset._to_mlflow_entity())])
    (logged,) = client.get_run(run_id).inputs.dataset_inputs
    assert logged.dataset.name == manifest.name
    source = get_dataset_source_from_json(logged.dataset.source, logged.dataset.source_type)
    assert isinstance(source, ImageDatasetSource)
    assert source.load() == manifest.uri


# MLflow finds two of its own for a local path.
@pytest.mark.filterwarnings("ignore:The specified dataset source can be interpreted")
def test_sources_of_other_data_sets_stay_mlflows_own(images: Path) -> None:
    source = mlflow.data.dataset_source_registry.resolve_dataset_source(str(images))
    assert not isinstance(source, ImageDatasetSource)


def test_composed_scenes_are_written_to_the_home_and_not_to_where_one_stands(
    digits_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFT_MLFLOW_HOME", str(digits_cache.parent))
    data = mlflow.data.from_annotated_images("digits", task="segmentation")
    assert data.targets == "segments"
    assert data.profile["num_rows"] == 360
    assert list(tmp_path.iterdir()) == []


def test_a_task_that_is_none_is_refused(images: Path) -> None:
    with pytest.raises(OptionsError, match="'masks' is neither"):
        mlflow.data.from_annotated_images(images, task="masks")
