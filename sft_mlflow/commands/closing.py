"""The end of a study: best trial on the test side -> registry -> report."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sft_mlflow.commands.observer import Notice, Observer
from sft_mlflow.commands.settling import CLOSING_SECONDS
from sft_mlflow.commands.study_report import Ended, Outcome, study_report, test_figures, worthless
from sft_mlflow.data.manifest import Manifest
from sft_mlflow.errors import TrackingError
from sft_mlflow.report.html import render
from sft_mlflow.report.tables import StudyReport
from sft_mlflow.report.text import summary_lines
from sft_mlflow.search.study import MOST_TRIALS, Limits, Row
from sft_mlflow.sources import model_folder
from sft_mlflow.tasks.figures import TestFigures
from sft_mlflow.tracking import fetch, messages, promotion, runs
from sft_mlflow.tracking.mirror import key_of, model_tags
from sft_mlflow.tracking.outbox import Outbox, now
from sft_mlflow.training.prepare import Prepared
from sft_mlflow.training.trial import MODEL
from sft_mlflow.whole_file import whole_file

# A server that is away this long after the last trial is not waited for; nothing is lost.
PATIENCE_SECONDS = 600.0


@dataclass(frozen=True)
class Finetuned:
    """What a study ended in. version, model_id: None where no trial finished."""

    study: str
    run_id: str
    model_name: str
    version: str | None
    model_id: str | None
    report: StudyReport
    lines: tuple[str, ...]


def close_study(
    ended: Ended, outbox: Outbox, parent: runs.ParentRun, observer: Observer
) -> Finetuned:
    """Test and register the best trial, and leave the report; raises TrackingError.

    The tracking server has got everything when this returns.
    """
    manifest, study = ended.loaded.manifest, ended.options.study
    best, figures, warnings = best_of(ended.rows), None, ended.warnings
    if best is not None:
        observer(Notice(f"Testing trial {best.number}, the best on validation"))
        model = best.folder / MODEL
        figures = test_figures(manifest, model, str(ended.device), ended.options.seed)
        warnings += worthless(figures, manifest, model, ended.settled.objective)
        _put_test(outbox, parent, best, figures)
    model_name = ended.options.model_name
    if best is not None:
        for row in _to_register(ended, best):
            _register(outbox, model_name, row, manifest, study, is_best=row == best)
    delivered = _flush(outbox, study, observer)
    key = key_of(best.number) if best else ""
    outcome = Outcome(
        best=best,
        test=figures,
        model_name=model_name,
        version=delivered.get(messages.version_key(key)),
        model_id=delivered.get(messages.model_id_key(key)),
        notes=(
            *warnings,
            *remarks(ended.settled.prepared),
            *cut_short(ended.limits, len(ended.rows)),
            *(f"the tracking server refused {what}" for what in outbox.refused),
        ),
        seconds=time.monotonic() - ended.begun,
    )
    report = study_report(ended, outcome)
    summary = tuple(summary_lines(report))
    path = ended.folder / "report.html"
    with whole_file(path) as beside:
        beside.write_text(render(report))
    outbox.put(messages.files(parent.run_id, {"report.html": path}))
    note = "\n".join(f"    {line}" for line in summary)
    note = f"The whole story is in the artifact `report.html`.\n\n{note}"
    outbox.put(messages.tags(parent.run_id, {messages.DESCRIPTION: note}))
    if outcome.model_id is not None:
        outbox.put(messages.tags(parent.run_id, {fetch.BEST_MODEL: outcome.model_id}))
        outbox.put(messages.output(parent.run_id, key))
    _tidy(ended.folder, ended.rows, best, _flush(outbox, study, observer))
    return Finetuned(
        study, parent.run_id, model_name, outcome.version, outcome.model_id, report, summary
    )


def remarks(prepared: Mapping[str, Prepared]) -> list[str]:
    """What was remarked about the probe of each source, with its name where there are several."""
    return [
        f"{uri}: {remark}" if len(prepared) > 1 else remark
        for uri, found in prepared.items()
        for remark in found.remarks
    ]


def cut_short(limits: Limits, done: int) -> tuple[str, ...]:
    """What to say where the budget ended the search before the trials that were wanted."""
    if limits.deadline is None or done >= limits.trials or limits.trials == MOST_TRIALS:
        return ()
    return (
        f"the budget ended the search after {done} of {limits.trials} trials; more of it, with the "
        "same study, goes on",
    )


def best_of(rows: tuple[Row, ...]) -> Row | None:
    """The finished trial with the best validation; of equals the one that trains less."""
    finished = [row for row in rows if row.state == "COMPLETE" and row.value is not None]
    return max(finished, key=lambda r: (r.value or -math.inf, -r.plan.depth), default=None)


def _put_test(outbox: Outbox, parent: runs.ParentRun, best: Row, figures: TestFigures) -> None:
    values: dict[str, float] = {}
    for name, interval in figures.figures.items():
        values[f"test/{name}"] = interval.value
        values[f"test/{name}_low"] = interval.low
        values[f"test/{name}_high"] = interval.high
    values |= {f"test/{name}": value for name, value in (figures.further or {}).items()}
    if (scaled := figures.calibration) is not None:
        values["test/ece"] = scaled.ece_after
        values["test/ece_before_scaling"] = scaled.ece_before
    outbox.put(messages.metrics(parent.run_id, values, 0, now()))
    outbox.put(messages.metrics(key_of(best.number), values, 0, now()))
    outbox.put(
        messages.tags(
            parent.run_id, {"sft.best_trial": str(best.number), "sft.depth": str(best.plan.depth)}
        )
    )


def _to_register(ended: Ended, best: Row) -> list[Row]:
    """What `register` names; the best last, so that the newest version is the one to look at."""
    if ended.options.register_ == "none":
        return []
    if ended.options.register_ == "best":
        return [best]
    with_model = [row for row in ended.rows if model_folder.is_model_folder(row.folder / MODEL)]
    return [*(row for row in with_model if row != best), best]


def _register(
    outbox: Outbox, model_name: str, row: Row, manifest: Manifest, study: str, *, is_best: bool
) -> None:
    """Queue the registration of a trial's model; the best gets the alias `challenger`."""
    config = model_folder.read_config(row.folder / MODEL)
    tags = {**model_tags(manifest, config), "sft.study": study}
    alias = fetch.CHALLENGER if is_best else None
    # This study has read the test data once; promotions count on from here.
    first_tags = {promotion.TEST_READINGS: "1"} if is_best else {}
    outbox.put(messages.registered(key_of(row.number), model_name, alias, tags, first_tags))


def _flush(outbox: Outbox, name: str, observer: Observer) -> Mapping[str, str]:
    """What the server called everything, once it has got everything."""
    if not outbox.flush(CLOSING_SECONDS):
        observer(Notice(f"Waiting for the tracking server: {outbox.problem or 'it is slow'}"))
    if not outbox.flush(PATIENCE_SECONDS):
        raise TrackingError(
            f"the tracking server is away ({outbox.problem}); {outbox.waiting} messages wait on "
            f"disk. All trials are done: the same command with --study {name} delivers them."
        )
    return outbox.ids


def _tidy(
    folder: Path, rows: tuple[Row, ...], best: Row | None, delivered: Mapping[str, str]
) -> None:
    """Remove what the tracking server now holds."""
    for row in rows:
        if row != best and messages.model_id_key(key_of(row.number)) in delivered:
            (row.folder / MODEL / model_folder.WEIGHTS).unlink(missing_ok=True)
