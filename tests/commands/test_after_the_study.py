"""What a user does with the registered model: promote, load, serve, continue from it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from mlflow.entities import Run

from tests.commands.test_finetune import parent_of
from tests.conftest import SMALL, FinishedStudy


@pytest.fixture
def parent(finished_study: FinishedStudy) -> Run:
    return parent_of(finished_study.run.client, "fields")


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


def test_a_result_can_be_the_next_source(finished_study: FinishedStudy) -> None:
    printed = finished_study.run.here(
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
    printed = finished_study.run.here(
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
        run.here(*words, "--input", str(finished_study.data))
    finally:
        broken.unlink()
    frame = pd.read_parquet(output)
    assert len(frame) == 73
    [row] = frame[frame["error"].notna()].to_dict("records")
    assert row["path"].endswith("broken.jpg")
    assert pd.isna(row["prediction"])
    assert set(frame["model_version"]) == {"fields/1"}
    said = run.refused(*words, "--input", str(finished_study.data / "red"))
    assert "overwrite" in said
    said = run.refused(*words, "--input", str(finished_study.data), "--coco", "scores.json")
    assert "--coco scores.json: scores of classification have no such form" in said
