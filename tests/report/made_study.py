"""A study with known figures, from which every report test starts."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sft_mlflow.report.tables import DataTable, NextStep, StudyReport, TrialRow
from sft_mlflow.tasks.figures import (
    Bin,
    Caption,
    ClassRow,
    ClassTable,
    Confusion,
    Interval,
    Picture,
    Reliability,
    TestFigures,
)


def trial(number: int, value: float | None, **changes: Any) -> TrialRow:
    fields: dict[str, Any] = {
        "number": number,
        "state": "FAIL" if value is None else "COMPLETE",
        "value": value,
        "source": "embedded://efficientnet_lite0",
        "depth": number,
        "full_depth": 17,
        "lr": 10.0**-number if number else None,
        "others": {"batch size": 16} if number else {},
        "epochs_done": 2,
        "seconds": 12.5,
        "metrics": {} if value is None else {"valid/accuracy": value, "valid/loss": 0.1234},
        "reason": "the loss is NaN in epoch 1" if value is None else None,
    }
    return TrialRow(**fields | changes)


def jpeg(colour: str = "teal") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (24, 16), colour).save(stream, "JPEG")
    return stream.getvalue()


def picture(truth: str, predicted: str, path: str = "a/b.png") -> Picture:
    said = Caption(path, f"{predicted} 0.9876", f"{truth} 0.0111", wrong=truth != predicted)
    return Picture(said, jpeg())


def figures_of(
    classes: Sequence[str],
    confusion: NDArray[np.int64] | None = None,
    worst: tuple[Picture, ...] = (),
    typical: tuple[Picture, ...] = (),
) -> TestFigures:
    counts = np.diag([7] * len(classes)) if confusion is None else confusion
    bins = (Bin(0.4, 0.6, 0.5, 0.4, 10), Bin(0.9, 1.0, 0.97, 0.99, 90))
    return TestFigures(
        images=int(counts.sum()),
        figures={
            "accuracy": Interval(0.9812, 0.9701, 0.9903),
            "macro_f1": Interval(0.9745, 0.9602, 0.9888),
        },
        per_class=ClassTable(
            "images",
            ("precision", "recall", "F1"),
            tuple(
                ClassRow(name, int(counts[i].sum()), (0.91, 0.92, 0.93 - i * 1e-4))
                for i, name in enumerate(classes)
            ),
        ),
        confusion=Confusion(tuple(classes), counts, "images"),
        calibration=Reliability(1.37, 0.0421, 0.0132, bins, bins[1:]),
        worst=worst,
        typical=typical,
    )


def study(**changes: Any) -> StudyReport:
    """A report of two finished trials, one pruned and one failed, with any field replaced."""
    fields: dict[str, Any] = {
        "title": "cats and dogs",
        "model": "models:/pets/3",
        "alias": "challenger",
        "next_steps": (NextStep("Promote it", "sft-mlflow promote --model-name pets"),),
        "command": "sft-mlflow finetune --data pets --epochs 2",
        "versions": {"sft-mlflow": "0.1.0", "torch": "2.14.1"},
        "data": DataTable("pets", "/data/pets", "d1ge57", {"train": 70, "test": 20}, 2),
        "check": {
            "files": 95,
            "broken": 3,
            "left_out": 2,
            "findings": [
                {
                    "severity": "warning",
                    "kind": "truncated",
                    "message": "cat/9.png: cut off; left out",
                    "paths": ["cat/9.png"],
                }
            ],
        },
        "objective": "accuracy",
        "objective_reason": "the classes are balanced",
        "trials": (
            trial(0, 0.9012),
            trial(1, 0.8101, state="PRUNED", reason="below the median"),
            trial(2, None),
            trial(3, 0.9634),
        ),
        "importance": {"depth": 0.7, "lr": 0.3},
        "best": 3,
        "test": figures_of(
            ("cat", "dog"),
            np.array([[9, 1], [2, 8]]),
            (picture("cat", "dog", "cat/worst.png"),),
            (picture("dog", "dog", "dog/typical.png"),),
        ),
        "seconds": 151.0,
        "notes": ("3 broken files were left out.",),
    }
    return StudyReport(**fields | changes)
