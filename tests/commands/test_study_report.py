"""What a report says of a model besides its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from sft_mlflow.commands.closing import cut_short, remarks
from sft_mlflow.commands.study_report import test_figures as figures_of
from sft_mlflow.commands.study_report import worthless
from sft_mlflow.options import FinetuneOptions, parse
from sft_mlflow.search.space import Space
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
    ("given", "done", "said"),
    [
        ({"trials": 8, "budget_minutes": 1}, 3, True),
        ({"trials": 8, "budget_minutes": 1}, 8, False),
        ({"budget_minutes": 1}, 3, False),
        ({"trials": 8}, 3, False),
        # There are no more than two to try.
        ({"trials": 8, "budget_minutes": 1, "lr": "1e-3"}, 2, False),
    ],
)
def test_trials_that_the_budget_did_not_reach_are_told(
    given: dict[str, object], done: int, said: bool
) -> None:
    options = parse(FinetuneOptions, {k: str(v) for k, v in given.items()})
    space = Space({"s": (1,)}, ("s",), lr_min=1e-4, lr_max=1e-3, rates=options.lr or ())
    assert bool(cut_short(options, space, done)) == said


def test_remarks_name_the_source_where_there_are_several() -> None:
    one = Prepared("a", 32, 4, "none", "float32", {}, 0.1, ["it is so"])
    assert remarks({"a": one}) == ["it is so"]
    assert remarks({"a": one, "b": one}) == ["a: it is so", "b: it is so"]
