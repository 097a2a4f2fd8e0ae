"""The study in this process, on real images and a real storage."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType

import optuna
import pytest
import sqlalchemy
import torch

from sft_mlflow.data.loading import load_manifest
from sft_mlflow.errors import OptionsError, SftError, TrackingError
from sft_mlflow.reuse.store import Store
from sft_mlflow.search import lanes
from sft_mlflow.search import study as studies
from sft_mlflow.search.events import TrialEnded, TrialEvent, TrialStarted
from sft_mlflow.search.space import Plan, Space
from sft_mlflow.search.study import Limits
from sft_mlflow.sources import model_folder
from sft_mlflow.training.checkpoints import Checkpoints
from sft_mlflow.training.events import EpochEnded, StepEnded
from sft_mlflow.training.prepare import prepare
from sft_mlflow.training.trial import Material
from tests import recipes

SOURCE = "embedded://efficientnet_lite0"
RECIPE = replace(
    recipes.RECIPE, source=SOURCE, depth=0, lr=None, epochs=2, head_start="probe", averaging=0.0
)
SPACE = Space({SOURCE: (1,)}, (SOURCE,), lr_min=1e-4, lr_max=1e-3)


@pytest.fixture(scope="module")
def make_material(
    pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Material]:
    manifest = load_manifest(str(pictures), cache=tmp_path_factory.mktemp("cache")).manifest

    def make() -> Material:
        folder = tmp_path_factory.mktemp("study")
        store = Store(folder / "store", budget_bytes=10**9)
        cpu = torch.device("cpu")
        material = Material("classification", manifest, folder, cpu, {}, store, reuse=True)
        prepare(
            material,
            RECIPE,
            image_size=32,
            augmentation="none",
            precision="float32",
            progress=lambda what, done, total: None,
        )
        return material

    return make


@pytest.fixture(scope="module")
def material(make_material: Callable[[], Material]) -> Material:
    return make_material()


def opened(
    folder: Path, fingerprint: Mapping[str, str] = MappingProxyType({}), *, prune: bool = True
) -> optuna.Study:
    storage = studies.open_storage(f"sqlite:///{folder / 'study.db'}")
    return studies.open_study("s", storage, fingerprint, seed=0, workers=1, prune=prune)


def test_the_probe_is_a_trial_without_epochs_whose_value_others_start_from(
    material: Material, tmp_path: Path
) -> None:
    study = opened(tmp_path)
    studies.enqueue_first(study, SPACE)
    events = list(studies.run_study(study, SPACE, {SOURCE: RECIPE}, material, Limits(2, None), 1))
    epochs = {
        number: [
            e.event
            for e in events
            if isinstance(e, TrialEvent) and isinstance(e.event, EpochEnded) and e.number == number
        ]
        for number in (0, 1)
    }
    assert [e.epoch for e in epochs[0]] == [0]
    assert [e.epoch for e in epochs[1]] == [0, 1, 2]
    assert epochs[0][0].value == epochs[1][0].value
    ended = [e for e in events if isinstance(e, TrialEnded)]
    assert [e.state for e in ended] == ["COMPLETE", "COMPLETE"]
    assert all(e.model is not None and model_folder.is_model_folder(e.model) for e in ended)
    assert not list(material.folder.glob("trials/*/*.pt"))


def test_a_loss_that_is_not_finite_fails_the_trial_and_not_the_study(
    make_material: Callable[[], Material], tmp_path: Path
) -> None:
    space = Space({SOURCE: (18,)}, (SOURCE,), lr_min=1e30, lr_max=2e30)
    recipe = replace(RECIPE, optimizer="sgd")
    study = opened(tmp_path)
    studies.enqueue_first(study, space)
    ended = [
        event
        for event in studies.run_study(
            study, space, {SOURCE: recipe}, make_material(), Limits(3, None), 1
        )
        if isinstance(event, TrialEnded)
    ]
    assert [event.state for event in ended] == ["COMPLETE", "FAIL", "FAIL"]
    assert "loss became" in str(ended[1].reason)


def test_the_budget_ends_a_trial_within_an_epoch_and_keeps_its_best(
    make_material: Callable[[], Material], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = Space({SOURCE: (1,)}, (), lr_min=1e-4, lr_max=1e-3)
    study, material = opened(tmp_path), make_material()
    studies.enqueue_first(study, space)
    recipe = replace(RECIPE, epochs=50)
    seen = []
    for event in studies.run_study(study, space, {SOURCE: recipe}, material, Limits(9, None), 1):
        seen.append(event)
        if isinstance(event, TrialEvent) and isinstance(event.event, StepEnded):
            # The time is over when it has taken one step.
            monkeypatch.setattr(studies, "_is_late", lambda limits: True)
    steps = [e for e in seen if isinstance(e, TrialEvent) and isinstance(e.event, StepEnded)]
    assert len(steps) == 2 < -(-len(material.manifest.side("train")) // recipe.batch_size)
    [ended] = [e for e in seen if isinstance(e, TrialEnded)]
    assert ended.reason == "the budget was used up"
    assert ended.model is not None


def test_a_study_goes_on_with_its_history(
    make_material: Callable[[], Material], tmp_path: Path
) -> None:
    material = make_material()
    settings = {SOURCE: RECIPE}
    study = opened(tmp_path, {"data": "d"})
    studies.enqueue_first(study, SPACE)
    list(studies.run_study(study, SPACE, settings, material, Limits(2, None), 1))
    again = opened(tmp_path, {"data": "d"})
    assert not studies.requeue_interrupted(again)
    events = list(studies.run_study(again, SPACE, settings, material, Limits(3, None), 1))
    assert [e.number for e in events if isinstance(e, TrialStarted)] == [2]
    assert [row.number for row in studies.rows(again)] == [0, 1, 2]


@pytest.mark.parametrize("statement", [1, 2, 5, 10, 20, 40, 60])
def test_ctrl_c_while_the_storage_is_asked_leaves_no_trial_running_in_it(
    statement: int, material: Material, tmp_path: Path
) -> None:
    study = opened(tmp_path)
    studies.enqueue_first(study, SPACE)
    left = [statement]

    def count(*_: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGINT)

    sqlalchemy.event.listen(sqlalchemy.Engine, "after_cursor_execute", count)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(studies.run_study(study, SPACE, {SOURCE: RECIPE}, material, Limits(2, None), 1))
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "after_cursor_execute", count)

    again = opened(tmp_path)
    states = [trial.state for trial in again.trials]
    assert optuna.trial.TrialState.RUNNING not in states
    # The probe is tried again, or is over.
    events = list(studies.run_study(again, SPACE, {SOURCE: RECIPE}, material, Limits(2, None), 1))
    assert [row.state for row in studies.rows(again)] == ["COMPLETE", "COMPLETE"], events


def test_a_study_begun_with_something_else_is_refused_naming_it(tmp_path: Path) -> None:
    opened(tmp_path, {"data": "one"})
    with pytest.raises(OptionsError, match="data was 'one' and is now 'two'"):
        opened(tmp_path, {"data": "two"})


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("study.db", OptionsError),
        ("nosuch://user:secret@host/database", OptionsError),
        ("sqlite:////no/such/folder/study.db", TrackingError),
    ],
)
def test_a_storage_that_cannot_be_opened_is_refused_naming_it(
    url: str, error: type[SftError]
) -> None:
    with pytest.raises(error, match=r"--storage: cannot be|unable to open database file"):
        studies.open_storage(url)


def test_a_storage_that_goes_away_ends_the_study_with_a_message(
    material: Material, tmp_path: Path
) -> None:
    study = opened(tmp_path)
    studies.enqueue_first(study, SPACE)
    events = studies.run_study(study, SPACE, {SOURCE: RECIPE}, material, Limits(2, None), 1)
    next(events)
    (tmp_path / "study.db").write_bytes(b"")
    with pytest.raises(TrackingError, match="the study's storage does not answer"):
        list(events)


def test_a_trial_whose_process_dies_three_times_is_given_up_and_ctrl_c_is_no_death(
    tmp_path: Path,
) -> None:
    study = opened(tmp_path)
    plan = {"plan": asdict(Plan(SOURCE, 1, 1e-3)), "folder": str(tmp_path)}
    tried = []
    for died in (True, False, False, False, True, True):
        trial = study.ask()
        for name, value in plan.items():
            trial.set_user_attr(name, value)
        studies._fail_and_retry_running(study, died=died)
        tried.append(trial.number)
        assert study.trials[trial.number].state == optuna.trial.TrialState.FAIL
    assert tried == [*range(6)]
    assert not studies.requeue_interrupted(study)
    [row] = studies.rows(study)
    assert (row.number, row.state, row.reason) == (
        5,
        "FAIL",
        "its process died 3 times at the same place",
    )


def test_a_trial_that_gets_on_between_deaths_is_not_given_up(tmp_path: Path) -> None:
    study = opened(tmp_path)
    for attempt in range(1, 8):
        trial = study.ask()
        assert trial.user_attrs.get("attempt", 1) == attempt
        for epoch in range(attempt):
            trial.report(0.5, epoch)
        studies._fail_and_retry_running(study, died=True)
    assert studies.requeue_interrupted(study) == [trial.number]


def test_a_trial_that_is_over_is_not_tried_again_whatever_comes_after_it(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Checkpoints) -> None:
        raise PermissionError

    monkeypatch.setattr(Checkpoints, "remove", refuse)
    study = opened(tmp_path)
    studies.enqueue_first(study, SPACE)
    with pytest.raises(PermissionError):
        list(studies.run_study(study, SPACE, {SOURCE: RECIPE}, material, Limits(2, None), 1))
    assert [row.state for row in studies.rows(study)] == ["COMPLETE"]
    assert not studies.requeue_interrupted(study)


def test_a_trial_that_the_end_of_the_time_finds_at_its_last_epoch_is_whole(
    make_material: Callable[[], Material], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = Space({SOURCE: (1,)}, (), lr_min=1e-4, lr_max=1e-3)
    study, material = opened(tmp_path), make_material()
    studies.enqueue_first(study, space)
    late: list[StepEnded] = []
    monkeypatch.setattr(studies, "_is_late", lambda limits: bool(late))
    ended = None
    for event in studies.run_study(study, space, {SOURCE: RECIPE}, material, Limits(9, None), 1):
        if isinstance(event, TrialEvent) and isinstance(event.event, StepEnded):
            step = event.event
            if (step.epoch, step.step) == (RECIPE.epochs, step.steps):
                late.append(step)
        if isinstance(event, TrialEnded):
            ended = event
    assert ended is not None
    assert (ended.state, ended.reason) == ("COMPLETE", None)


def test_a_worker_says_what_ended_it(
    make_material: Callable[[], Material], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with lanes.open_lanes(make_material(), workers=2) as [lane, _]:
        lane.start(RECIPE, tmp_path / "file" / "trial")
        with pytest.raises(lanes.WorkerDiedError, match="exit code 1"):
            lane.next()
    assert "NotADirectoryError" in capfd.readouterr().err


@pytest.mark.parametrize("prune", [True, False])
def test_the_worst_trial_at_its_epoch_is_pruned_unless_every_trial_is_wanted(
    prune: bool, tmp_path: Path
) -> None:
    study = opened(tmp_path, prune=prune)
    for value in (0.6, 0.7, 0.8, 0.9, 0.95):
        study.add_trial(
            optuna.create_trial(value=value, intermediate_values={1: value, 2: value, 3: value})
        )
    trial = study.ask()
    trial.report(0.1, 3)
    assert trial.should_prune() == prune
