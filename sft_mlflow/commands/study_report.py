"""The plain tables of a study's report, gathered from everything that took part."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sft_mlflow import __version__
from sft_mlflow.commands.settling import Settled
from sft_mlflow.commands.surroundings import command_line
from sft_mlflow.data.loading import Loaded
from sft_mlflow.data.manifest import SPLITS, Manifest, Sample
from sft_mlflow.options import FinetuneOptions, PromoteOptions, ScoreOptions, parse
from sft_mlflow.report.pictures import thumbnail
from sft_mlflow.report.tables import (
    Calibration,
    DataTable,
    Interval,
    NextStep,
    Picture,
    Prediction,
    StudyReport,
    TestFigures,
    TrialRow,
)
from sft_mlflow.search.study import Row
from sft_mlflow.tasks.classification import metrics
from sft_mlflow.tasks.classification.predictor import Predictor
from sft_mlflow.tracking.fetch import CHALLENGER
from sft_mlflow.tracking.held_out import probabilities

PICTURES = 12
_LIBRARIES = ("mlflow", "optuna", "torch", "torchvision", "timm")


@dataclass(frozen=True)
class Ended:
    """What is known when the last trial of a study is over."""

    options: FinetuneOptions
    loaded: Loaded
    settled: Settled
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
    index = {name: i for i, name in enumerate(manifest.classes)}
    truth = np.array([index[s.label] for s in samples], np.int64)
    found = probabilities(predictor, samples)
    temperature = predictor.config.temperature
    # Scaling the logarithms back gives the probabilities as they were before calibration.
    raw = np.exp(temperature * np.log(np.clip(found, 1e-300, None)))
    before = raw / raw.sum(axis=1, keepdims=True)
    figures = {
        "accuracy": Interval(
            metrics.accuracy(found, truth), *metrics.accuracy_interval(found, truth)
        ),
        "macro_f1": Interval(
            metrics.macro_f1(found, truth),
            *metrics.bootstrap_interval(metrics.macro_f1, found, truth, seed=seed),
        ),
    }
    worst, typical = _pictures(manifest, samples, found, truth)
    return TestFigures(
        images=len(samples),
        figures=figures,
        per_class=metrics.per_class(found, truth, manifest.classes),
        confusion=metrics.confusion(found, truth, manifest.classes),
        calibration=Calibration(
            temperature=temperature,
            ece_before=metrics.expected_calibration_error(before, truth),
            ece_after=metrics.expected_calibration_error(found, truth),
            before=metrics.reliability(before, truth),
            after=metrics.reliability(found, truth),
        ),
        worst=worst,
        typical=typical,
    )


def study_report(ended: Ended, outcome: Outcome) -> StudyReport:
    """Everything that the report says, in plain tables."""
    manifest = ended.loaded.manifest
    best = outcome.best
    return StudyReport(
        title=f"Study {ended.options.study}",
        model=_model(outcome),
        alias=CHALLENGER if outcome.version is not None else None,
        next_steps=_next_steps(ended.page, outcome),
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


def _next_steps(page: str, outcome: Outcome) -> tuple[NextStep, ...]:
    see = NextStep("See the study", page)
    if outcome.model_id is None:
        return (see,)
    # The registered best is the challenger, which `promote` takes by itself.
    model = "" if outcome.version is not None else f"models:/{outcome.model_id}"
    promoted = f"models:/{outcome.model_name}@champion"
    promote = parse(PromoteOptions, {"model_name": outcome.model_name, "model": model})
    score = parse(ScoreOptions, {"model": promoted, "input": "FOLDER", "output": "scores.parquet"})
    return (
        see,
        NextStep("Promote it to champion", command_line("promote", promote)),
        NextStep("Then score your images with it", command_line("score", score)),
    )


def _pictures(
    manifest: Manifest,
    samples: tuple[Sample, ...],
    found: NDArray[np.float64],
    truth: NDArray[np.int64],
) -> tuple[tuple[Picture, ...], tuple[Picture, ...]]:
    """The mistakes that the model was most sure of, and for each class its most typical hit."""
    predicted = found.argmax(axis=1)
    sure = found.max(axis=1)
    wrong = np.flatnonzero(predicted != truth)
    worst = wrong[np.argsort(-sure[wrong])][:PICTURES]
    typical = []
    for label in range(len(manifest.classes)):
        hits = np.flatnonzero((predicted == truth) & (truth == label))
        if len(hits):
            # The median, since the surest hit is rarely what the class looks like.
            typical.append(hits[np.argsort(sure[hits])][len(hits) // 2])

    def picture(at: int) -> Picture:
        sample = samples[at]
        return Picture(
            Prediction(
                path=f"{sample.path.parent.name}/{sample.path.name}",
                truth=sample.label,
                predicted=manifest.classes[predicted[at]],
                probability=float(sure[at]),
                truth_probability=float(found[at, truth[at]]),
            ),
            thumbnail(sample.path),
        )

    return tuple(map(picture, worst)), tuple(map(picture, typical[:PICTURES]))
