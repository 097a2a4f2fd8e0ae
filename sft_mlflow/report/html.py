"""The report as one HTML file that needs nothing else: no request, no script."""

from __future__ import annotations

import base64
import math
from importlib import resources
from itertools import groupby
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from sft_mlflow.report import plots, wording
from sft_mlflow.report.pictures import NAMED_CLASSES, confusion_figure
from sft_mlflow.report.tables import StudyReport, TrialRow, by_merit, confused_pairs
from sft_mlflow.tasks.figures import ClassRow

# A matrix that shows its counts needs the list less than a picture of one does.
_PAIRS_BESIDE_COUNTS, _PAIRS_BESIDE_PICTURE = 6, 15
_OPEN_ROWS = 20


def render(report: StudyReport) -> str:
    """The report as HTML for people; every text that comes from outside is escaped.

    It holds its pictures and plots, asks for nothing over the network and has no script, so it
    also shows inside the sandboxed frame of MLflow's artifact view, in light and dark.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters.update(
        figure=wording.figure,
        metric=wording.metric,
        rate=wording.learning_rate,
        duration=wording.duration,
        compact=wording.compact,
        jpeg=_data_uri,
    )
    template = environment.from_string(
        resources.files(__package__).joinpath("template.html").read_text("utf-8")
    )
    best, test = report.best_trial, report.test
    matrix, most_pairs = None, _PAIRS_BESIDE_COUNTS
    if test is not None and len(test.confusion.names) > NAMED_CLASSES:
        most_pairs = _PAIRS_BESIDE_PICTURE
        matrix = _inline(confusion_figure(test.confusion), "Confusion matrix")
    return template.render(
        report=report,
        sign=wording.SIGN,
        best=best,
        test=test,
        recipe=None if best is None else wording.recipe(best),
        gain=wording.gain_over_probe(report),
        failures=wording.failures(report.trials),
        tally=wording.tally(report.trials),
        trials=by_merit(report.trials),
        sources=list(dict.fromkeys(trial.source for trial in report.trials)),
        searched=list(dict.fromkeys(name for trial in report.trials for name in trial.others)),
        trial_metrics=_metric_names(report.trials, report.objective),
        open_rows=_OPEN_ROWS,
        weakest=[] if test is None else sorted(test.per_class.rows, key=_weakness),
        pairs=[] if test is None else confused_pairs(test.confusion, most_pairs),
        matrix=matrix,
        findings=_grouped(report.check["findings"]),
        plots=_plots(report),
    )


def _plots(report: StudyReport) -> dict[str, Markup]:
    objective = wording.metric(report.objective)
    drawn = {}
    if report.importance:
        drawn["importance"] = _inline(plots.importance(report.importance), "Importance")
    if any(trial.value is not None for trial in report.trials):
        figure = plots.history(report.trials, report.best, objective)
        drawn["history"] = _inline(figure, "Optimisation history")
        figure = plots.lr_against_depth(report.trials, report.best, objective)
        drawn["lr_depth"] = _inline(figure, "Learning rate against depth")
    if report.test is not None and (scaled := report.test.calibration) is not None:
        figure = plots.reliability(
            scaled.before, scaled.after, (scaled.ece_before, scaled.ece_after)
        )
        drawn["reliability"] = _inline(figure, "Reliability before and after scaling")
    if report.test is not None and report.test.curves:
        figure = plots.precision_over_recall(report.test.curves)
        drawn["curves"] = _inline(figure, "Precision over recall")
    return drawn


def _inline(figure: Figure, label: str) -> Markup:
    # Safe: `plots.svg` escapes every text, and nothing else in it comes from outside.
    return Markup(plots.svg(figure, label))


def _data_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def _weakness(row: ClassRow) -> tuple[bool, float, str]:
    # What does not occur has no figure, and says nothing.
    return math.isnan(row.lead), row.lead, row.name


def _metric_names(trials: tuple[TrialRow, ...], objective: str) -> list[str]:
    names = dict.fromkeys(name for trial in trials for name in trial.metrics)
    return [name for name in names if name != f"valid/{objective}"]


def _grouped(findings: Any) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """(severity, kind, findings), the worst severity first, as the check orders them."""
    return [
        (severity, kind, list(same))
        for severity in ("error", "warning", "note")
        for kind, same in groupby(
            sorted((f for f in findings if f["severity"] == severity), key=lambda f: f["kind"]),
            key=lambda f: f["kind"],
        )
    ]
