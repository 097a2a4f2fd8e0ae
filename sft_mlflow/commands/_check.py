"""`check`: look at the data without training."""

from __future__ import annotations

import json
from pathlib import Path

from sft_mlflow.commands.observer import Observer, Progress, unobserved
from sft_mlflow.commands.surroundings import home
from sft_mlflow.data.checks import CheckReport
from sft_mlflow.data.loading import load_manifest
from sft_mlflow.options import CheckOptions


def check(options: CheckOptions, observer: Observer = unobserved) -> CheckReport:
    """What there is to know about the data; as JSON too, where an output is given."""
    loaded = load_manifest(
        options.data,
        seed=options.seed,
        cache=home() / "data",
        progress=lambda done, total: observer(Progress("Reading images", done, total)),
    )
    if options.output:
        text = json.dumps({**loaded.report.to_dict(), "digest": loaded.manifest.digest}, indent=2)
        Path(options.output).write_text(text)
    return loaded.report
