"""How long a study searches."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sft_mlflow.commands.settling import DEFAULT_TRIALS, Settled, limits_of
from sft_mlflow.data.loading import load_manifest
from sft_mlflow.options import FinetuneOptions, parse
from sft_mlflow.search.space import Space
from tests import recipes


@pytest.mark.parametrize(
    ("given", "rates", "trials"),
    [
        ({}, (), DEFAULT_TRIALS),
        ({"trials": "50"}, (), 50),
        # The probe and two rates at one depth: there is nothing else to try.
        ({"trials": "50"}, (1e-3, 1e-4), 3),
        ({"trials": "2"}, (1e-3, 1e-4), 2),
        ({}, (1e-3, 1e-4), 3),
    ],
)
def test_no_more_trials_are_announced_than_there_are(
    given: dict[str, str], rates: tuple[float, ...], trials: int, pictures: Path, tmp_path: Path
) -> None:
    space = Space({"s": (1,)}, ("s",), lr_min=1e-4, lr_max=1e-3, rates=rates)
    settled = Settled("accuracy", "", recipes.RECIPE, {}, space)
    loaded = load_manifest(str(pictures), cache=tmp_path)
    limits = limits_of(parse(FinetuneOptions, given), loaded, settled, time.monotonic())
    assert (limits.trials, limits.deadline) == (trials, None)
