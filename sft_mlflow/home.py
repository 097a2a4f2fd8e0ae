"""The folder for everything that outlives a command: studies, data sets, fetched models."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

HOME = "SFT_MLFLOW_HOME"


def home() -> Path:
    """SFT_MLFLOW_HOME, or the user's own folder for data of programs."""
    given = os.environ.get(HOME)
    return Path(given).expanduser() if given else platformdirs.user_data_path("sft_mlflow")
