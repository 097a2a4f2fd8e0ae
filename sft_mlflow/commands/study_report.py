"""The plain tables of a study's report, gathered from everything that took part."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sft_mlflow import __version__
from sft_mlflow.commands.settling import Settled
from sft_mlflow.commands.surroundings import command_line, option_words
from sft_mlflow.data.loading import Loaded
from sft_mlflow.data.manifest import SPLITS, Manifest
from sft_mlflow.data.truth import TaskName
from sft_mlflow.options import FinetuneOptions, PromoteOptions, ScoreOptions, parse
from sft_mlflow.report import wording
from sft_mlflow.report.tables import DataTable, NextStep, StudyReport, TrialRow
from sft_mlflow.scoring.exports import FOLDERS
from sft_mlflow.search.study import Limits, Row
from sft_mlflow.sources import model_folder
from sft_mlflow.tasks import TASKS
from sft_mlflow.tasks.base import Frame
from sft_mlflow.tasks.figures import Picture, TestFigures
from sft_mlflow.tasks.naive import compared
from sft_mlflow.tasks.predictor import Predictor
from sft_mlflow.tracking import held_out
from sft_mlflow.tracking.fetch import CHALLENGER

PICTURES = 12
_LIBRARIES = ("mlflow", "optuna", "torch", "torchvision", "timm")


@dataclass(frozen=True)
class Ended:
    """What is known when the last trial of a study is over."""

    options: FinetuneOptions
    loaded: Loaded
    settled: Settled
    limits: Limits
    rows: tuple[Row, ...]
    importance: Mapping[str, float]
    folder: Path
    device: torch.device
    command: str
    page: str
    begun: float
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of the best trial. best, test, version, model_id: None where there is none."""

    best: Row | None
    test: TestFigures | None
    model_name: str
    version: str | None
    model_id: str | None
    notes: tuple[str, ...]
    seconds: float


def test_figures(manifest: Manifest, folder: Path, device: str, seed: int) -> TestFigures:
    """What the model of the folder makes of the test side, each file read as scoring reads it."""
    samples = manifest.side("test")
    predictor = Predictor.load(folder, device)
    frame = Frame.of_model(predictor.config, manifest)
    judging = predictor.task.judging
    evidence = held_out.evidence(predictor, samples, frame)

    def drawn(rows: NDArray[np.intp]) -> tuple[Picture, ...]:
        shown = [samples[row] for row in rows]
        answers = chain.from_iterable(held_out.answers(predictor, shown))
        return tuple(
            Picture(caption, jpeg)
            for sample, answer in zip(shown, answers, strict=True)
            for jpeg, caption in (judging.drawing(sample, answer, frame),)
        )

    worst, typical = judging.notable(evidence, samples, frame, PICTURES)
    return replace(
        judging.tested(evidence, samples, frame, seed), worst=drawn(worst), typical=drawn(typical)
    )


def worthless(
    figures: TestFigures, manifest: Manifest, folder: Path, metric: str
) -> tuple[str, ...]:
    """What to say of a model that does no better on the test side than one that knows nothing."""
    config = model_folder.read_config(folder)
    beside = compared(
        TASKS[config.task].judging,
        metric,
        figures.figures[metric].value,
        manifest.side("test"),
        Frame.of_model(config, manifest),
    )
    # Where one answer is always right, no model can do better.
    if beside.knows or beside.naive >= 1:
        return ()
    return (
        f"the best model is no better on the test images than {beside.who} "
        f"({wording.metric(metric)} {beside.found:.4f} and {beside.naive:.4f}): look at what the "
        "check found, or give it more epochs.",
    )


def study_report(ended: Ended, outcome: Outcome) -> StudyReport:
    """Everything that the report says, in plain tables."""
    manifest = ended.loaded.manifest
    best = outcome.best
    return StudyReport(
        title=f"Study {ended.options.study}",
        model=_model(outcome),
        alias=CHALLENGER if outcome.version is not None else None,
        next_steps=_next_steps(ended.page, manifest.task, outcome),
        command=ended.command,
        versions={
            "sft-mlflow": __version__,
            **{name: importlib.metadata.version(name) for name in _LIBRARIES},
        },
        data=DataTable(
            name=manifest.name,
            uri=manifest.uri,
            digest=manifest.digest,
            counts={split: len(manifest.side(split)) for split in SPLITS},
            classes=len(manifest.classes),
        ),
        check=ended.loaded.report.to_dict(),
        objective=ended.settled.objective,
        objective_reason=ended.settled.objective_reason,
        trials=tuple(_trial_row(row, ended.settled) for row in ended.rows),
        importance=ended.importance,
        best=best.number if best else None,
        test=outcome.test,
        seconds=outcome.seconds,
        notes=outcome.notes,
    )


def _trial_row(row: Row, settled: Settled) -> TrialRow:
    return TrialRow(
        number=row.number,
        state=row.state,
        value=row.value,
        source=row.plan.source,
        depth=row.plan.depth,
        full_depth=settled.prepared[row.plan.source].full_depth,
        lr=row.plan.lr,
        others={name.replace("_", " "): value for name, value in row.plan.others.items()},
        epochs_done=max(row.values, default=0),
        seconds=row.seconds,
        metrics={k: v for k, v in row.metrics.items() if k.startswith("valid/")},
        reason=row.reason,
    )


def _model(outcome: Outcome) -> str | None:
    if outcome.version is not None:
        return f"models:/{outcome.model_name}/{outcome.version}"
    return f"models:/{outcome.model_id}" if outcome.model_id else None


def _next_steps(page: str, task: TaskName, outcome: Outcome) -> tuple[NextStep, ...]:
    see = NextStep("See the study", page)
    if outcome.model_id is None:
        return (see,)
    # The registered best is the challenger, which `promote` takes by itself.
    model = "" if outcome.version is not None else f"models:/{outcome.model_id}"
    promoted = f"models:/{outcome.model_name}@champion"
    promote = parse(PromoteOptions, {"model_name": outcome.model_name, "model": model})
    score = parse(ScoreOptions, {"model": promoted, "input": "FOLDER", "output": "scores.parquet"})
    places = {
        name: "FOLDER" if name in FOLDERS else "FILE" for name in TASKS[task].answering.exports
    }
    others = " and ".join(option_words(name, place) for name, place in places.items())
    besides = f" (other forms besides: {others})" if others else ""
    return (
        see,
        NextStep("Promote it to champion", command_line("promote", promote)),
        NextStep(f"Then score your images with it{besides}", command_line("score", score)),
    )
