"""`report`: a study's report once more, as a file."""

from __future__ import annotations

import difflib
from pathlib import Path

from sft_mlflow.errors import OptionsError
from sft_mlflow.home import home
from sft_mlflow.options import ReportOptions
from sft_mlflow.report.wording import SIGN
from sft_mlflow.whole_file import make_folder_of, whole_file


def report(options: ReportOptions) -> Path:
    """Path of the copy of the report that the study wrote when it ended."""
    studies = home() / "studies"
    source = studies / options.study / "report.html"
    if not source.exists():
        known = sorted(path.parent.name for path in studies.glob("*/report.html"))
        near = difflib.get_close_matches(options.study, known, n=3, cutoff=0.4)
        what = "Nearest" if near else "There are"
        raise OptionsError(
            f"--study {options.study!r}: no study of that name has a report here. "
            f"{what}: {', '.join(near or known) or 'none'}."
        )
    target = Path(options.output)
    if target.is_dir():
        target /= source.name
    text = source.read_text(encoding="utf-8")
    if target.exists() and SIGN not in target.read_text(encoding="utf-8", errors="replace"):
        raise OptionsError(f"--output {target}: exists and is no report. Choose another one.")
    make_folder_of(target, "--output")
    with whole_file(target) as beside:
        beside.write_text(text, encoding="utf-8")
    return target
