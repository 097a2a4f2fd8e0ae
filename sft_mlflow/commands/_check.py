"""`check`: look at the data without training."""

from __future__ import annotations

import json
from pathlib import Path

from sft_mlflow.commands.observer import Notice, Observer, Progress, unobserved
from sft_mlflow.data.loading import Surveyed, survey
from sft_mlflow.data.truth import ignored_values
from sft_mlflow.errors import OptionsError
from sft_mlflow.home import home
from sft_mlflow.options import CheckOptions
from sft_mlflow.whole_file import make_folder_of, whole_file

# By this key a file is known as one of these.
_DIGEST = "digest"


def check(options: CheckOptions, observer: Observer = unobserved) -> Surveyed:
    """What there is to know about the data; as JSON too, where an output is given."""
    output = Path(options.output) if options.output else None
    if output is not None:
        _refuse_losses(output)
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
    if output is not None:
        with whole_file(output) as beside:
            beside.write_text(json.dumps(_as_json(found), indent=2))
    return found


def _as_json(found: Surveyed) -> dict[str, object]:
    return {**found.report.to_dict(), _DIGEST: found.manifest.digest}


def _refuse_losses(output: Path) -> None:
    """Raises OptionsError where something else would be lost, or nothing can be written."""
    make_folder_of(output, "--output")
    try:
        earlier = json.loads(output.read_text()) if output.exists() else {_DIGEST: ""}
    except (OSError, ValueError):
        earlier = None
    if not isinstance(earlier, dict) or _DIGEST not in earlier:
        raise OptionsError(f"--output {output}: exists and is no earlier check. Choose another.")
