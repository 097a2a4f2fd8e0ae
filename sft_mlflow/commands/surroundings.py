"""Where a command runs, and how it was called."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from pathlib import Path

from sft_mlflow.errors import DataError
from sft_mlflow.options import Options, flag


def quieten_mlflow() -> None:
    """Leave the screen to our own progress."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def under_mlflow_run() -> bool:
    """Whether `mlflow run` started this process."""
    return "MLFLOW_RUN_ID" in os.environ


def command_line(command: str, options: Options) -> str:
    """The command that gives these options, only those that differ from the defaults."""
    defaults = type(options).model_construct().as_text()
    given = {k: v for k, v in options.as_text().items() if defaults.get(k) != v}
    if under_mlflow_run():
        entry = [] if command == "finetune" else ["-e", command]
        # An environment that MLflow built for the project is rebuilt from its cache by default.
        local = [] if ".mlflow" in sys.prefix else ["--env-manager", "local"]
        pairs = [f"{k.rstrip('_')}={v}" for k, v in given.items()]
        parameters = [word for pair in pairs for word in ("-P", pair)]
        return shlex.join(["mlflow", "run", ".", *entry, *local, *parameters])
    words = [word for k, v in given.items() for word in (flag(k), v)]
    return shlex.join(["sft-mlflow", command, *words])


def option_words(name: str, value: str) -> str:
    """How that option is given here."""
    return f"-P {name}={value}" if under_mlflow_run() else f"{flag(name)} {value}"


def short_name(data: str) -> str:
    """The data's name as part of other names. Raises DataError where nothing is left of it."""
    stem = Path(data).stem if "/" in data or "\\" in data else data
    kept = "".join(c if c.isalnum() or c in "-_" else "-" for c in stem).strip("-").lower()
    if not kept:
        raise DataError(f"--data {data!r}: no name follows from it; give --study and --model-name.")
    return kept
