from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.models import Model
from sklearn.metrics import accuracy_score, f1_score

from sft_mlflow.data.manifest import Manifest
from sft_mlflow.errors import DataError
from sft_mlflow.tracking import packaging

from . import made_models

OURS = "sft_image_classification"


@pytest.fixture
def active(client: MlflowClient, experiment_id: str) -> Iterator[str]:
    """Id of an active run of the test's own store, as a user of `evaluate` has one."""
    with mlflow.start_run(experiment_id=experiment_id) as run:
        yield run.info.run_id


@pytest.fixture
def frame(manifest: Manifest) -> pd.DataFrame:
    samples = manifest.side("test")
    return pd.DataFrame(
        {"path": [str(s.path) for s in samples], "label": [s.label for s in samples]}
    )


@pytest.fixture(scope="session")
def packaged(
    tmp_path_factory: pytest.TempPathFactory,
    manifest: Manifest,
    good_folder: Path,
    bad_folder: Path,
) -> dict[str, str]:
    """Both models as MLflow loads them."""
    root = tmp_path_factory.mktemp("packaged")
    example = manifest.samples[0].path.read_bytes()
    for name, folder in (("good", good_folder), ("bad", bad_folder)):
        packaging.package(folder, example, Model(), root / name)
    return {name: str(root / name) for name in ("good", "bad")}


@pytest.mark.parametrize("named", [True, False])
def test_figures_and_artifacts_of_a_model_on_paths(
    client: MlflowClient, active: str, frame: pd.DataFrame, packaged: dict[str, str], named: bool
) -> None:
    result = mlflow.models.evaluate(
        packaged["bad"],
        frame,
        targets="label",
        model_type="image-classification",
        evaluators=OURS if named else None,
    )
    swapped = frame["label"].map({"green": "red", "red": "green", "blue": "blue"})
    assert result.metrics["accuracy"] == accuracy_score(frame["label"], swapped)
    assert result.metrics["macro_f1"] == pytest.approx(
        f1_score(frame["label"], swapped, average="macro")
    )
    assert 0 < result.metrics["ece"] < 1
    assert client.get_run(active).data.metrics == result.metrics
    files = {item.path for item in client.list_artifacts(active, "evaluation")}
    assert files == {
        "evaluation/per_class.csv",
        "evaluation/confusion_matrix.csv",
        "evaluation/confusion_matrix.png",
    }
    counts = result.artifacts["confusion_matrix"].content.set_index("true")
    assert counts.loc["green", "red"] == (frame["label"] == "green").sum()
    assert counts.loc["green", "green"] == 0


def test_bytes_and_paths_give_the_same_figures(
    active: str, frame: pd.DataFrame, packaged: dict[str, str]
) -> None:
    images = [Path(path).read_bytes() for path in frame["path"]]
    results = [
        mlflow.models.evaluate(
            packaged["good"],
            data,
            targets="label",
            model_type="image-classification",
            evaluators=OURS,
        )
        for data in (frame, pd.DataFrame({"image": images, "label": frame["label"]}))
    ]
    assert results[0].metrics == results[1].metrics


def test_a_data_set_of_a_folder_can_be_evaluated(
    client: MlflowClient, active: str, tmp_path: Path, packaged: dict[str, str]
) -> None:
    images = made_models.write_images(tmp_path / "fresh", 4, seed=11)
    result = mlflow.models.evaluate(
        packaged["good"],
        mlflow.data.from_image_folder(images),
        model_type="image-classification",
    )
    assert result.metrics["accuracy"] == 1.0
    (logged,) = client.get_run(active).inputs.dataset_inputs
    assert logged.dataset.name == "fresh"


def test_a_broken_file_is_named(active: str, tmp_path: Path, packaged: dict[str, str]) -> None:
    images = made_models.write_images(tmp_path / "some", 4, seed=11)
    broken = next(images.rglob("*.png"))
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match=rf"{broken.name}: .*sft-mlflow check"):
        mlflow.models.evaluate(
            packaged["good"],
            mlflow.data.from_image_folder(images),
            model_type="image-classification",
        )


def test_a_column_of_predictions_is_judged_without_a_model(
    active: str, frame: pd.DataFrame
) -> None:
    said = frame.assign(said=["blue"] * len(frame))
    result = mlflow.models.evaluate(
        data=said, targets="label", predictions="said", model_type="image-classification"
    )
    assert result.metrics["accuracy"] == (frame["label"] == "blue").mean()
    assert "ece" not in result.metrics


def test_a_class_that_the_model_does_not_know_is_always_wrong(
    active: str, frame: pd.DataFrame, packaged: dict[str, str]
) -> None:
    result = mlflow.models.evaluate(
        packaged["good"],
        frame.assign(label=frame["label"].replace("red", "rouge")),
        targets="label",
        model_type="image-classification",
    )
    assert result.metrics["accuracy"] == (frame["label"] != "red").mean()


def test_a_frame_without_images_is_refused(active: str, packaged: dict[str, str]) -> None:
    frame = pd.DataFrame({"a": [1], "b": [2], "label": ["red"]})
    with pytest.raises(DataError, match="'image' for encoded bytes or 'path'"):
        mlflow.models.evaluate(
            packaged["good"],
            frame,
            targets="label",
            model_type="image-classification",
            evaluators=OURS,
        )


def test_a_class_may_have_the_name_of_a_column(active: str) -> None:
    answers = pd.DataFrame({"label": ["true", "false", "true"], "said": ["true", "true", "true"]})
    result = mlflow.models.evaluate(
        data=answers, targets="label", predictions="said", model_type="image-classification"
    )
    matrix = result.artifacts["confusion_matrix"].content
    assert matrix.columns.tolist() == ["true", "true", "false"]
    assert matrix.to_numpy().tolist() == [["true", 2, 0], ["false", 1, 0]]
