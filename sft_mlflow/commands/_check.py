"""`check`: look at the data without training."""

from __future__ import annotations

import json
from pathlib import Path

from sft_mlflow.commands.observer import Notice, Observer, Progress, unobserved
from sft_mlflow.data.loading import Surveyed, survey
from sft_mlflow.data.truth import ignored_values
from sft_mlflow.home import home
from sft_mlflow.options import CheckOptions
from sft_mlflow.whole_file import whole_file


def check(options: CheckOptions, observer: Observer = unobserved) -> Surveyed:
    """What there is to know about the data; as JSON too, where an output is given."""
    found = survey(
        options.data,
        task=None if options.task == "auto" else options.task,
        faulty=options.faulty,
        ignored=ignored_values(options.ignore_index),
        seed=options.seed,
        cache=home() / "data",
        progress=lambda done, total: observer(Progress("Reading images", done, total)),
    )
    observer(Notice(f"What can be learnt from it: {found.manifest.task}"))
    if options.output:
        text = json.dumps({**found.report.to_dict(), "digest": found.manifest.digest}, indent=2)
        output = Path(options.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(output) as beside:
            beside.write_text(text)
    return found
