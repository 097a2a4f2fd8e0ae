"""The whole road as a user walks it, against a real MLflow server."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.conftest import SMALL, FinishedStudy


def children(client: MlflowClient, parent: Run) -> list[Run]:
    query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    return sorted(
        client.search_runs([parent.info.experiment_id], query), key=lambda run: run.info.start_time
    )


def parent_of(client: MlflowClient, study: str) -> Run:
    [experiment] = client.search_experiments(filter_string="name = 'Default'")
    [run] = client.search_runs(
        [experiment.experiment_id],
        f"tags.`sft.study` = '{study}' AND tags.`sft.best_model_id` != ''",
    )
    return run


@pytest.fixture
def client(finished_study: FinishedStudy) -> MlflowClient:
    return finished_study.run.client


@pytest.fixture
def parent(client: MlflowClient) -> Run:
    return parent_of(client, "fields")


def test_one_study_is_one_parent_run_with_one_child_a_trial(
    client: MlflowClient, parent: Run
) -> None:
    trials = children(client, parent)
    assert [run.data.tags["sft.trial"] for run in trials] == ["0", "1", "2", "3"]
    assert {run.info.status for run in trials} <= {"FINISHED", "KILLED"}
    assert parent.info.status == "FINISHED"


def test_trials_cover_the_probe_two_middle_depths_and_the_full_network(
    client: MlflowClient, parent: Run
) -> None:
    depths = [int(run.data.params["options.depth"]) for run in children(client, parent)]
    assert depths == [0, 18, 9, 4]


def test_every_trial_has_its_options_metrics_of_each_epoch_and_a_model(
    client: MlflowClient, parent: Run
) -> None:
    for run in children(client, parent):
        assert run.data.params["options.batch_size"] == "16"
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "valid/accuracy")]
        assert steps == ([0] if run.data.params["options.depth"] == "0" else [0, 1])
        [output] = run.outputs.model_outputs
        model = client.get_logged_model(output.model_id)
        assert model.status == "READY"
        assert model.tags["sft.data_digest"] == parent.data.tags["sft.data_digest"]
        names = {f.path for f in client.list_artifacts(run.info.run_id)}
        assert "confusion.png" in names


def test_the_parent_has_the_test_figures_of_the_best_trial(
    client: MlflowClient, parent: Run
) -> None:
    figures = parent.data.metrics
    assert figures["test/accuracy_low"] <= figures["test/accuracy"] <= figures["test/accuracy_high"]
    assert {"test/macro_f1", "test/ece", "test/ece_before_scaling"} <= figures.keys()
    best = [
        run
        for run in children(client, parent)
        if run.data.tags["sft.trial"] == parent.data.tags["sft.best_trial"]
    ]
    assert best[0].data.metrics["test/accuracy"] == figures["test/accuracy"]


def test_test_data_do_not_choose_the_trial(client: MlflowClient, parent: Run) -> None:
    trials = [r for r in children(client, parent) if r.info.status == "FINISHED"]
    chosen = max(
        max(m.value for m in client.get_metric_history(r.info.run_id, "valid/accuracy"))
        for r in trials
    )
    best = parent.data.tags["sft.best_trial"]
    [run] = [r for r in trials if r.data.tags["sft.trial"] == best]
    history = client.get_metric_history(run.info.run_id, "valid/accuracy")
    assert max(m.value for m in history) == chosen
    others = [r for r in trials if r.data.tags["sft.trial"] != best]
    assert not any("test/accuracy" in r.data.metrics for r in others)


def test_the_best_is_registered_as_challenger_with_signature_example_and_origin(
    client: MlflowClient, parent: Run
) -> None:
    version = client.get_model_version_by_alias("fields", "challenger")
    assert version.tags["sft.data_digest"] == parent.data.tags["sft.data_digest"]
    assert version.tags["sft.source"] == "embedded://efficientnet_lite0"
    assert len(version.tags["sft.weights_sha256"]) == 64
    assert version.tags["sft.test_readings"] == "1"
    model = client.get_logged_model(parent.data.tags["sft.best_model_id"])
    assert version.source == f"models:/{model.model_id}"
    files = {f.path for f in client.list_logged_model_artifacts(model.model_id)}
    assert {"MLmodel", "input_example.json", "requirements.txt"} <= files


def test_parameters_under_options_are_the_resolved_ones(parent: Run) -> None:
    params = parent.data.params
    assert params["options.trials"] == "4"
    assert params["options.study"] == "fields"
    assert params["options.lr_min"] == "0.0001"
    assert params["options.augment"] == "auto"
    assert params["settled.augment"] == "none"
    assert params["settled.metric"] == "accuracy"


def test_the_data_set_shows_on_the_runs(client: MlflowClient, parent: Run) -> None:
    for run in [parent, *children(client, parent)]:
        [data] = client.get_run(run.info.run_id).inputs.dataset_inputs
        assert data.dataset.name == "fields"


def test_the_check_and_the_report_are_artifacts(client: MlflowClient, parent: Run) -> None:
    run_id = parent.info.run_id
    assert "report.html" in {f.path for f in client.list_artifacts(run_id)}
    data = {Path(f.path).name for f in client.list_artifacts(run_id, "data")}
    assert data == {"manifest.parquet", "check.json", "broken_files.json"}


def test_the_last_lines_say_what_was_found_and_what_to_do_next(
    finished_study: FinishedStudy, parent: Run
) -> None:
    printed = finished_study.printed
    assert "Test accuracy" in printed
    assert f"/runs/{parent.info.run_id}" in printed
    assert "sft-mlflow promote --model-name fields" in printed
    assert "sft-mlflow score --model models:/fields@champion" in printed


def test_scoring_the_test_images_gives_exactly_the_logged_figures(
    finished_study: FinishedStudy, client: MlflowClient, parent: Run, tmp_path: Path
) -> None:
    manifest = finished_study.run.home / "studies" / "fields" / "manifest.parquet"
    output = tmp_path / "scores.parquet"
    finished_study.run.here(
        "score",
        *("--model", "models:/fields@challenger"),
        *("--input", str(manifest), "--split", "test", "--output", str(output)),
    )
    frame = pd.read_parquet(output)
    right = float((frame["label"] == frame["prediction"]).mean())
    assert right == parent.data.metrics["test/accuracy"]
    [run] = client.search_runs(
        [parent.info.experiment_id], "tags.`sft.model` = 'models:/fields/1'", max_results=1
    )
    for name in ("accuracy", "macro_f1", "ece"):
        assert run.data.metrics[f"score/{name}"] == parent.data.metrics[f"test/{name}"]
    assert run.data.metrics["images"] == len(frame)
    assert run.inputs.dataset_inputs[0].dataset.name == "manifest"


def test_the_same_study_again_has_nothing_left_to_do_and_says_so(
    finished_study: FinishedStudy,
) -> None:
    printed = finished_study.run.here(
        "report", "--study", "fields", "--output", str(finished_study.run.folder / "again.html")
    )
    assert printed.strip().endswith("again.html")
    folder = finished_study.run.folder / "reports"
    folder.mkdir()
    words = ("report", "--study", "fields", "--output")
    assert finished_study.run.here(*words, str(folder)).strip() == str(folder / "report.html")
    (folder / "mine.txt").write_text("mine")
    said = finished_study.run.refused(*words, str(folder / "mine.txt"))
    assert "is no report" in said
    # The study's own is left where it is, and an earlier copy replaced.
    own = finished_study.run.home / "studies" / "fields" / "report.html"
    for same in (own, folder / "report.html"):
        assert finished_study.run.here(*words, str(same)).strip() == str(same)
    assert (folder / "mine.txt").read_text() == "mine"
    assert "Study fields" in (finished_study.run.folder / "again.html").read_text()


def test_a_study_with_other_data_space_or_epochs_is_refused_naming_what_changed(
    finished_study: FinishedStudy, tmp_path: Path
) -> None:
    study = ("finetune", "--study", "fields", "--image-size", "32", "--precision", "float32")
    data = ("--data", str(finished_study.data))
    refused = finished_study.run.refused
    said = refused(*study, *data, "--epochs", "2")
    assert "epochs was '1' and is now '2'" in said
    said = refused(*study, *data, "--epochs", "1", "--lr-max", "0.01")
    assert "lr_max" in said
    said = refused(*study, "--data", "digits", "--epochs", "1")
    assert "data" in said


def test_a_refused_command_leaves_the_tracking_store_as_it_was(
    finished_study: FinishedStudy, client: MlflowClient, parent: Run
) -> None:
    before = client.search_runs([parent.info.experiment_id])
    data = ("--data", str(finished_study.data))
    refused = finished_study.run.refused
    refused("finetune", "--study", "fields", *data, "--epochs", "3")
    refused("finetune", "--study", "new", *data, "--source", "embedded://x")
    said = refused("finetune", "--study", "new", *data, "--depths", "layer4.0")
    assert "stem" in said
    assert "conv_head" in said
    other = ("--storage", f"sqlite:///{finished_study.run.folder / 'other.db'}")
    assert "--storage" in refused("finetune", "--study", "fields", *data, *other)
    after = client.search_runs([parent.info.experiment_id])
    assert [run.to_dictionary() for run in after] == [run.to_dictionary() for run in before]
    assert not (finished_study.run.home / "studies" / "new").exists()


def test_what_the_data_or_the_task_refuse_needs_no_server(finished_study: FinishedStudy) -> None:
    nobody = "http://127.0.0.1:9"
    refused = finished_study.run.refused
    said = refused("finetune", "--data", "fieldz", MLFLOW_TRACKING_URI=nobody)
    assert "'fieldz' is no folder" in said
    data = ("--data", str(finished_study.data))
    said = refused("finetune", *data, "--metric", "miou", MLFLOW_TRACKING_URI=nobody)
    assert "--metric miou" in said


@pytest.mark.parametrize(
    "words", [("finetune",), ("promote", "--model-name=x"), ("score", "--model=x", "--output=y")]
)
def test_a_server_that_does_not_answer_is_told_soon(
    words: tuple[str, ...], finished_study: FinishedStudy
) -> None:
    data = {"finetune": "--data", "score": "--input"}.get(words[0])
    given = () if data is None else (data, str(finished_study.data))
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        calls: list[None] = []

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    server.accept()[0].close()
                    calls.append(None)

        listening = threading.Thread(target=hang_up)
        listening.start()
        said = finished_study.run.refused(*words, *given, code=1, MLFLOW_TRACKING_URI=uri)
        server.shutdown(socket.SHUT_RDWR)
        listening.join()
    assert f"{uri}: does not answer" in said
    # Minutes are what more of them would take.
    assert 1 <= len(calls) <= 2


def test_the_check_writes_its_findings_as_json(
    finished_study: FinishedStudy, tmp_path: Path
) -> None:
    output = tmp_path / "check.json"
    words = ("--data", str(finished_study.data), "--output", str(output))
    said = finished_study.run.here("check", *words)
    assert "72 files, 3 classes" in said
    assert json.loads(output.read_text())["files"] == 72
    # An earlier one is replaced, other files are not.
    finished_study.run.here("check", *words)
    output.write_text("path,label\n")
    assert "is no earlier check" in finished_study.run.refused("check", *words)
    assert output.read_text() == "path,label\n"
    below = ("--data", str(finished_study.data), "--output", str(output / "below.json"))
    assert "no folder for it" in finished_study.run.refused("check", *below)


def test_a_dot_in_the_name_of_the_data_loses_no_model(
    finished_study: FinishedStudy, client: MlflowClient
) -> None:
    data = finished_study.data.with_name("fields.v2")
    shutil.copytree(finished_study.data, data)
    job = ("--study", "dotted", "--model-name", "dotted", "--depths", "0", *SMALL)
    finished_study.run.here("finetune", "--data", str(data), *job)
    assert client.get_model_version_by_alias("dotted", "challenger").version == "1"
