"""What a user does with the registered model: promote, load, serve, continue from it."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.error import URLError

import pandas as pd
import pytest
from mlflow.entities import Run

from tests.commands.test_finetune import children, parent_of
from tests.conftest import SMALL, FinishedStudy


@pytest.fixture
def parent(finished_study: FinishedStudy) -> Run:
    return parent_of(finished_study.run.client, "fields")


def test_any_trial_can_be_promoted_and_a_rollback_brings_the_old_champion_back(
    finished_study: FinishedStudy, parent: Run
) -> None:
    run, client = finished_study.run, finished_study.run.client
    first, second = (
        child.outputs.model_outputs[0].model_id for child in children(client, parent)[:2]
    )
    said = run("promote", "--model_name", "fields-shop", "--model", f"models:/{first}")
    assert "promoted (champion before: none)" in said
    said = run(
        *("promote", "--model-name", "fields-shop", "--model", f"models:/{second}"),
        *("--min-improvement=-1", "--max-class-drop", "1"),
    )
    assert "promoted" in said
    assert client.get_model_version_by_alias("fields-shop", "champion").version == "2"
    assert client.get_model_version_by_alias("fields-shop", "previous").version == "1"
    run("promote", "--model-name", "fields-shop", "--rollback", "yes")
    assert client.get_model_version_by_alias("fields-shop", "champion").version == "1"


def test_a_refused_promotion_exits_with_3_and_says_which_condition_failed(
    finished_study: FinishedStudy, parent: Run
) -> None:
    run = finished_study.run
    run("promote", "--model-name", "fields-gate", "--model", f"runs:/{parent.info.run_id}")
    other = children(run.client, parent)[3].outputs.model_outputs[0].model_id
    said = run(
        *("promote", "--model-name", "fields-gate", "--model", f"models:/{other}"),
        *("--min-improvement", "0.9"),
        code=3,
    )
    assert "refused" in said
    assert "FAILED" in said
    assert "improvement" in said
    assert run.client.get_model_version_by_alias("fields-gate", "champion").version == "1"


def test_an_unknown_model_suggests_the_nearest_name(finished_study: FinishedStudy) -> None:
    said = finished_study.run("promote", "--model-name", "field", code=1)
    assert "fields" in said
    assert "Traceback" not in said


def test_all_wrong_options_are_reported_at_once(finished_study: FinishedStudy) -> None:
    said = finished_study.run("finetune", "--epochs", "none", "--batch_size", "0", code=2)
    assert "--epochs" in said
    assert "--batch-size" in said


def test_the_model_loads_without_the_training_data_and_without_pickle(
    finished_study: FinishedStudy, parent: Run, tmp_path: Path
) -> None:
    image = next(finished_study.data.glob("red/*.jpg"))
    elsewhere = tmp_path / "image.jpg"
    elsewhere.write_bytes(image.read_bytes())
    script = (
        "import mlflow, pandas, sys\n"
        "model = mlflow.pyfunc.load_model('models:/fields@challenger')\n"
        "frame = pandas.DataFrame({'image': [open(sys.argv[1], 'rb').read()]})\n"
        "print(model.predict(frame).to_json(orient='records'))\n"
    )
    away = finished_study.data.rename(finished_study.data.with_name("moved"))
    try:
        printed = subprocess.run(
            [sys.executable, "-c", script, str(elsewhere)],
            env=finished_study.run.environment(MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false"),
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
        ).stdout
    finally:
        away.rename(finished_study.data)
    [answer] = json.loads(printed.strip().splitlines()[-1])
    assert answer["prediction"] == "red"
    assert sum(answer["probabilities"].values()) == pytest.approx(1)


def test_mlflow_models_serve_answers_base64_images(
    finished_study: FinishedStudy, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    command += ["-m", "models:/fields@challenger", "--port", str(port), "--host", "127.0.0.1"]
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (tmp_path / "log").open("wb") as log:
        serving = subprocess.Popen(
            command,
            env=finished_study.run.environment(PATH=binaries),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    image = base64.b64encode(next(finished_study.data.glob("green/*.jpg")).read_bytes()).decode()
    body = json.dumps({"dataframe_split": {"columns": ["image"], "data": [[image]]}}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        body,
        {"Content-Type": "application/json"},
    )
    try:
        for _ in range(600):
            try:
                with urllib.request.urlopen(request, timeout=60) as response:
                    answer = json.load(response)
                break
            except (URLError, ConnectionError):
                with pytest.raises(subprocess.TimeoutExpired):
                    serving.wait(timeout=0.2)
    finally:
        os.killpg(serving.pid, 9)
        serving.wait()
    [row] = answer["predictions"]
    assert row["prediction"] == "green"
    assert row["probabilities"]["green"] == pytest.approx(row["probability"])


def test_a_result_can_be_the_next_source(finished_study: FinishedStudy) -> None:
    run = finished_study.run
    printed = run(
        *("finetune", "--data", str(finished_study.data), "--study", "second"),
        *("--source", "models:/fields@challenger", "--register", "none", *SMALL),
        *("--depths", "0,1", "--trials", "2"),
    )
    assert "Best: trial" in printed
    # Same data and split: no test image was learnt on by the source.
    assert "test figures are too good" not in printed


def test_test_images_that_the_source_was_trained_on_are_told(
    finished_study: FinishedStudy,
) -> None:
    printed = finished_study.run(
        *("finetune", "--data", str(finished_study.data), "--study", "leak", "--seed", "5"),
        *("--source", "models:/fields@challenger", "--register", "none", *SMALL),
        *("--depths", "0", "--trials", "1"),
    )
    assert "test figures are too good" in printed


def test_an_interrupted_score_goes_on_and_an_output_of_another_job_is_kept(
    finished_study: FinishedStudy, tmp_path: Path
) -> None:
    run = finished_study.run
    output = tmp_path / "scores.parquet"
    words = ("score", "--model", "models:/fields@challenger", "--output", str(output))
    broken = finished_study.data / "red" / "broken.jpg"
    broken.write_bytes(b"not an image")
    try:
        run(*words, "--input", str(finished_study.data))
    finally:
        broken.unlink()
    frame = pd.read_parquet(output)
    assert len(frame) == 73
    [row] = frame[frame["error"].notna()].to_dict("records")
    assert row["path"].endswith("broken.jpg")
    assert pd.isna(row["prediction"])
    assert set(frame["model_version"]) == {"fields/1"}
    said = run(*words, "--input", str(finished_study.data / "red"), code=2)
    assert "overwrite" in said
    said = run(*words, "--input", str(finished_study.data), "--coco", "scores.json", code=2)
    assert "--coco scores.json: scores of classification have no such form" in said
