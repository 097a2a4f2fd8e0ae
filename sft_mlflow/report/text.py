"""The study in a few lines of plain text, for the end of a command's output."""

from __future__ import annotations

from sft_mlflow.report import wording
from sft_mlflow.report.tables import StudyReport


def summary_lines(report: StudyReport) -> list[str]:
    """What was found and what to do next; the exact commands stand last, one a line."""
    lines = [
        # A study that went on had earlier runs.
        f"{report.title}: {wording.tally(report.trials)}; this run took "
        f"{wording.duration(report.seconds)}"
    ]
    best, test = report.best_trial, report.test
    if best is None:
        lines.append("No trial finished, so there is no model.")
        lines += [f"  {reason}" for reason in wording.failures(report.trials)]
    else:
        lines.append(f"Best: trial {best.number} of {best.source}, training {wording.recipe(best)}")
        gain = wording.gain_over_probe(report)
        lines.append(
            f"Validation {wording.metric(report.objective)} {wording.figure(best.value)}"
            + (f", {gain}" if gain else "")
        )
    if test is not None:
        lines += [
            f"Test {wording.metric(name)} {wording.interval(found)} on {test.images} images"
            if position == 0
            else f"Test {wording.metric(name)} {wording.interval(found)}"
            for position, (name, found) in enumerate(test.figures.items())
        ]
        if (scaled := test.calibration) is not None:
            lines.append(
                f"Calibration error {scaled.ece_before:.4f} before, {scaled.ece_after:.4f} after "
                f"temperature {scaled.temperature:.2f}"
            )
    if report.model is not None:
        alias = f", alias {report.alias}" if report.alias else ""
        lines.append(f"Model: {report.model}{alias}")
    lines += [f"Note: {note}" for note in report.notes]
    for step in report.next_steps:
        lines += [f"{step.what}:", f"  {step.command}"]
    return lines
