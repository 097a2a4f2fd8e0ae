from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sft_mlflow.errors import TrackingError
from sft_mlflow.tracking.connection import connect


def test_several_first_commands_at_once_make_one_database(tmp_path: Path) -> None:
    environment = os.environ | {"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}
    program = "from sft_mlflow.tracking.connection import connect; connect()"
    begun = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for _ in range(3)
    ]
    said = [process.communicate(timeout=300)[0].decode() for process in begun]
    assert [process.returncode for process in begun] == [0, 0, 0], said


def test_a_file_that_is_no_database_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.db").write_bytes(b"this is no database, whatever its name says" * 100)
    monkeypatch.setattr("mlflow.get_tracking_uri", lambda: f"sqlite:///{tmp_path}/broken.db")
    monkeypatch.setattr("mlflow.set_tracking_uri", lambda uri: None)
    with pytest.raises(TrackingError, match=r"broken\.db: no database that MLflow can use"):
        connect()
