from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from sft_mlflow.errors import OptionsError, TrackingError
from sft_mlflow.sources import model_folder
from sft_mlflow.tracking.fetch import fetch, resolve

from . import made_models


@pytest.fixture
def logged(client: MlflowClient, experiment_id: str, good_folder: Path) -> tuple[str, str]:
    return made_models.log_model(client, experiment_id, good_folder)


@pytest.fixture
def registered(client: MlflowClient, logged: tuple[str, str]) -> tuple[str, str]:
    run_id, model_id = logged
    made_models.register(client, "colours", model_id, run_id)
    made_models.register(client, "colours", model_id, run_id, alias="champion")
    return run_id, model_id


@pytest.mark.parametrize(
    "form",
    ["models:/colours@champion", "models:/colours/2", "colours", "models:/colours"],
)
def test_every_form_of_a_registered_name_finds_the_version(
    client: MlflowClient, registered: tuple[str, str], form: str
) -> None:
    reference = resolve(client, form)
    assert (reference.name, reference.version) == ("colours", "2")
    assert reference.model_id == registered[1]
    assert reference.label == "colours/2"


def test_a_logged_model_and_its_run_are_the_same_model(
    client: MlflowClient, logged: tuple[str, str], tmp_path: Path, good_folder: Path
) -> None:
    run_id, model_id = logged
    by_id = fetch(client, f"models:/{model_id}", into=tmp_path / "into")
    by_run = fetch(client, f"runs:/{run_id}", into=tmp_path / "into")
    by_name = fetch(client, f"runs:/{run_id}/model", into=tmp_path / "into")
    assert by_id == by_run == by_name
    assert by_id.reference.name is None
    assert by_id.reference.tags["sft.task"] == "classification"
    assert model_folder.read_config(by_id.folder) == model_folder.read_config(good_folder)
    assert (by_id.folder / "manifest.parquet").is_file()
    assert (by_id.folder / "weights.safetensors").read_bytes() == (
        good_folder / "weights.safetensors"
    ).read_bytes()


def test_a_study_gives_the_model_of_its_best_trial(
    client: MlflowClient, logged: tuple[str, str], run_id: str
) -> None:
    client.set_tag(run_id, "sft.best_model_id", logged[1])
    assert resolve(client, f"runs:/{run_id}").model_id == logged[1]


def test_a_run_with_several_models_wants_a_name(
    client: MlflowClient, logged: tuple[str, str]
) -> None:
    run = client.get_run(logged[0])
    client.create_logged_model(run.info.experiment_id, name="second", source_run_id=logged[0])
    with pytest.raises(TrackingError, match=f"several models.*{logged[1]}"):
        resolve(client, f"runs:/{logged[0]}")
    assert resolve(client, f"runs:/{logged[0]}/model").model_id == logged[1]


def test_a_name_without_a_champion_means_the_challenger_and_else_the_newest(
    client: MlflowClient, logged: tuple[str, str]
) -> None:
    for _ in range(2):
        made_models.register(client, "colours", logged[1], logged[0])
    assert resolve(client, "colours").version == "2"
    client.set_registered_model_alias("colours", "challenger", "1")
    assert resolve(client, "colours").version == "1"
    # As MLflow reads it, whatever the aliases are.
    assert resolve(client, "models:/colours/latest").version == "2"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/colour@champion", "Nearest: colours"),
        ("models:/colours@champoin", "Did you mean 'champion'"),
        ("models:/colours/9", "Its versions: 1, 2"),
        ("models:/m-" + "0" * 32, "no such LoggedModel"),
        ("runs:/" + "0" * 32, "no such run"),
    ],
)
def test_what_does_not_exist_is_named_with_what_does(
    client: MlflowClient, registered: tuple[str, str], uri: str, message: str
) -> None:
    with pytest.raises(TrackingError, match=message):
        resolve(client, uri)


@pytest.mark.parametrize("uri", ["some/path", "s3://bucket/model", "models:/a/b/c"])
def test_another_form_of_uri_is_refused(client: MlflowClient, uri: str) -> None:
    with pytest.raises(OptionsError, match="models:/NAME@ALIAS"):
        resolve(client, uri)


def test_a_run_without_a_model_says_so(client: MlflowClient, run_id: str) -> None:
    with pytest.raises(TrackingError, match="logged no model"):
        resolve(client, f"runs:/{run_id}")


def test_a_model_of_another_make_is_refused_and_leaves_nothing(
    client: MlflowClient, experiment_id: str, tmp_path: Path
) -> None:
    foreign = client.create_logged_model(experiment_id, name="foreign")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "MLmodel").write_text("flavors: {}\n")
    client.log_model_artifacts(foreign.model_id, str(tmp_path / "foreign"))
    client.finalize_logged_model(foreign.model_id, "READY")
    with pytest.raises(TrackingError, match="not made by sft_mlflow"):
        fetch(client, f"models:/{foreign.model_id}", into=tmp_path / "into")
    assert [p for p in (tmp_path / "into").iterdir() if p.is_dir()] == []
