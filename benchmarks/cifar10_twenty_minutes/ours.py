"""The product as a user runs it: `sft-mlflow finetune`, `promote`, `score`."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd

from benchmarks.cifar10_twenty_minutes.arm import Outcome, Setting

NAME = "cifar10"


def run(setting: Setting) -> Outcome:
    # The command of this interpreter's environment before any other.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if shutil.which("sft-mlflow", path=path) is None:
        sys.exit("`sft-mlflow` is not installed in this environment: pip install .")
    environment = os.environ | {
        "PATH": path,
        "SFT_MLFLOW_HOME": str(setting.work / "home"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{setting.work / 'mlflow.db'}",
    }
    scores = setting.work / "scores.parquet"
    finetune = ["finetune", "--data", str(setting.images), "--model-name", NAME]
    finetune += ["--budget-minutes", f"{setting.seconds / 60:g}", *setting.finetune]
    promote = ["promote", "--model-name", NAME]
    score = ["score", "--model", f"models:/{NAME}@champion", "--output", str(scores)]
    score += ["--input", str(setting.images / "test")]

    commands = [["sft-mlflow", *words] for words in (finetune, promote, score)]
    ends = []
    for command in commands:
        print("$", shlex.join(command), flush=True)
        # MLflow puts artifacts below the folder that it is started in.
        subprocess.run(command, check=True, env=environment, cwd=setting.work)
        ends.append(setting.used())

    frame = pd.read_parquet(scores)
    right = frame["prediction"] == frame["label"]
    return Outcome(
        correct=int(right.sum()),
        images=len(frame),
        # The study's budget has its evaluation, registration and report in it.
        seconds=ends[0],
        chosen=frame["model_version"].iloc[0],
        commands=tuple(map(shlex.join, commands)),
    )
