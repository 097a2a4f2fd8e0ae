"""What a report says of a model besides its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from sft_mlflow.commands.closing import cut_short, remarks
from sft_mlflow.commands.study_report import test_figures as figures_of
from sft_mlflow.commands.study_report import worthless
from sft_mlflow.search.study import MOST_TRIALS, Limits
from sft_mlflow.training.prepare import Prepared
from tests.tracking import made_models


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"blue": "green", "green": "red", "red": "blue"}, "always answering"),
        ({}, None),
    ],
)
def test_a_model_that_knows_nothing_is_called_so(
    answers: Mapping[str, str], said: str | None, tmp_path: Path
) -> None:
    images = made_models.write_images(tmp_path / "images", 12, seed=3)
    manifest = made_models.manifest_of(images, tmp_path / "cache")
    folder = made_models.write_model(tmp_path / "model", manifest, answers=answers)
    figures = figures_of(manifest, folder, "cpu", seed=0)
    notes = worthless(figures, manifest, folder, "accuracy")
    assert [said in note for note in notes] == ([] if said is None else [True])


def test_no_model_is_better_than_one_answer_that_is_always_right(tmp_path: Path) -> None:
    images = made_models.write_images(tmp_path / "images", 12, seed=3)
    whole = made_models.manifest_of(images, tmp_path / "cache")
    folder = made_models.write_model(tmp_path / "model", whole)
    kept = tuple(s for s in whole.samples if s.split != "test" or s.label == "blue")
    manifest = replace(whole, samples=kept)
    figures = figures_of(manifest, folder, "cpu", seed=0)
    assert worthless(figures, manifest, folder, "accuracy") == ()


@pytest.mark.parametrize(
    ("limits", "done", "said"),
    [
        (Limits(8, 60.0), 3, True),
        (Limits(8, 60.0), 8, False),
        (Limits(MOST_TRIALS, 60.0), 3, False),
        (Limits(8, None), 3, False),
    ],
)
def test_trials_that_the_budget_did_not_reach_are_told(
    limits: Limits, done: int, said: bool
) -> None:
    assert bool(cut_short(limits, done)) == said


def test_remarks_name_the_source_where_there_are_several() -> None:
    one = Prepared("a", 32, 4, "none", "float32", {}, 0.1, ["it is so"])
    assert remarks({"a": one}) == ["it is so"]
    assert remarks({"a": one, "b": one}) == ["a: it is so", "b: it is so"]
