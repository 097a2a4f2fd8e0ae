"""The study: asks Optuna for trials, runs them, tells it what came of them, survives crashes.

Optuna's storage is the truth about trials; only this process talks to it, however many workers
run trials.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState as State
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from sft_mlflow.errors import OptionsError, TrackingError, TrialError, first_line
from sft_mlflow.interrupts import uninterrupted
from sft_mlflow.search.events import StudyEvent, TrialEnded, TrialEvent, TrialStarted, TrialState
from sft_mlflow.search.lanes import Lane, WorkerDiedError, open_lanes, ready
from sft_mlflow.search.space import PROBE, Plan, Space
from sft_mlflow.training.checkpoints import Checkpoints
from sft_mlflow.training.events import EpochEnded, FitEnded, StepEnded, StoreFilled
from sft_mlflow.training.recipe import Recipe
from sft_mlflow.training.trial import MODEL, Material

# Random trials before TPE models what it has seen, and trials before any can be pruned.
STARTUP_TRIALS = 5
# A trial among the worst quarter at its epoch ends. Few epochs tell little, so no more than that.
PRUNE_BELOW_PERCENTILE = 75.0
# After the first epoch the learning rate has hardly risen, and who is behind says nothing yet.
PRUNE_FROM_EPOCH = 2
# A trial whose process dies so often, and it gets no further (out of memory), is given up.
DEATHS = 3
MOST_TRIALS = 10_000
# Folder of the trials' folders, below the study's.
TRIALS = "trials"

_FINGERPRINT = "fingerprint"
_FOLDER = "folder"
_ATTEMPT = "attempt"
_DEATHS = "deaths"
_EPOCHS = "epochs"
_PLAN = "plan"
_RETRIED = "retried"
_REASON = "reason"
_SECONDS = "seconds"
_METRICS = "metrics"


@dataclass(frozen=True)
class Limits:
    """When the study ends. deadline: on the clock of `time.monotonic`, None for no end."""

    trials: int
    deadline: float | None


@dataclass(frozen=True)
class Row:
    """One trial of the study, as a plain row.

    value: of its best epoch, None where it has none; values: of each epoch; metrics: of the best.
    """

    number: int
    state: TrialState
    value: float | None
    plan: Plan
    folder: Path
    reason: str | None
    seconds: float
    values: Mapping[int, float]
    metrics: Mapping[str, float]


@contextmanager
def _asking() -> Iterator[None]:
    """A question to the storage. Ctrl-C waits for its end; its failure is a TrackingError.

    A question that is torn apart leaves its transaction open, and sqlite locked for what is still
    to be said of the trials that were running.
    """
    with uninterrupted():
        try:
            yield
        except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
            raise TrackingError(
                f"the study's storage does not answer ({first_line(error)}). Once it does, the "
                f"same command goes on."
            ) from error


@_asking()
def open_storage(url: str) -> BaseStorage:
    """The storage of studies at that URL. Raises OptionsError and TrackingError."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.storages.get_storage(url)
    except (ArgumentError, ImportError, ValueError) as error:
        raise OptionsError(
            # Without the URL, in which there may be a password.
            f"--storage: cannot be opened ({first_line(error)}). Write it like "
            f"sqlite:////folder/study.db or postgresql://user:password@host/database."
        ) from error


@_asking()
def open_study(
    name: str,
    storage: BaseStorage,
    fingerprint: Mapping[str, str],
    *,
    seed: int,
    workers: int,
    prune: bool,
) -> optuna.Study:
    """The study of that name, new or as it was left.

    fingerprint: what must be the same for the results to be comparable. Raises OptionsError that
    names what changed.
    """
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        pruner=optuna.pruners.PercentilePruner(
            PRUNE_BELOW_PERCENTILE,
            n_startup_trials=STARTUP_TRIALS,
            n_warmup_steps=PRUNE_FROM_EPOCH,
            n_min_trials=3,
        )
        if prune
        else optuna.pruners.NopPruner(),
        direction="maximize",
        load_if_exists=True,
    )
    with warnings.catch_warnings():
        # Both are what Optuna's own guide recommends for conditional and for parallel search.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = optuna.samplers.TPESampler(
            # A study that goes on must not draw once more what it drew at first.
            seed=seed + len(study.get_trials(deepcopy=False)),
            multivariate=True,
            group=True,
            n_startup_trials=STARTUP_TRIALS,
            constant_liar=workers > 1,
        )
    before = study.user_attrs.get(_FINGERPRINT)
    if before is None:
        study.set_user_attr(_FINGERPRINT, dict(fingerprint))
    elif changed := [
        f"{key} was {before.get(key)!r} and is now {value!r}"
        for key, value in fingerprint.items()
        if before.get(key) != value
    ]:
        raise OptionsError(
            f"--study {name}: it was begun otherwise and cannot go on: {'; '.join(changed)}. "
            f"Take the same options, or another name for a new study."
        )
    return study


@_asking()
def is_known(name: str, storage: BaseStorage) -> bool:
    """Whether the storage holds a study of that name."""
    return name in optuna.get_all_study_names(storage)


def enqueue_first(study: optuna.Study, space: Space) -> None:
    """Queue the trials that the space begins with, as far as the study does not have them."""
    with _asking():
        queued = len(study.get_trials(deepcopy=False))
    for params, attributes in space.first()[queued:]:
        # Each is a question of its own: there may be thousands.
        with _asking():
            study.enqueue_trial(params, user_attrs=attributes)


@_asking()
def requeue_interrupted(study: optuna.Study) -> list[int]:
    """Numbers of the interrupted trials that are queued to go on.

    Those that a dead process left running are failed and queued first. Only to be called while no
    other process runs this study.
    """
    _fail_and_retry_running(study, died=True)
    queued = study.get_trials(states=(State.WAITING,), deepcopy=False)
    return [t.user_attrs[_RETRIED] for t in queued if _RETRIED in t.user_attrs]


def run_study(
    study: optuna.Study,
    space: Space,
    settings: Mapping[str, Recipe],
    material: Material,
    limits: Limits,
    workers: int,
) -> Generator[StudyEvent, None, None]:
    """Events of all trials until a limit is reached.

    settings: for each source the recipe of its trials; what is searched is replaced.
    """
    try:
        with open_lanes(material, workers) as lanes:
            yield from _trials(study, space, settings, material, limits, lanes)
    finally:
        # Reached with trials still running when the consumer stops or an error passes through.
        _fail_and_retry_running(study, died=False)


def _trials(
    study: optuna.Study,
    space: Space,
    settings: Mapping[str, Recipe],
    material: Material,
    limits: Limits,
    lanes: Sequence[Lane],
) -> Iterator[StudyEvent]:
    running: dict[Lane, _Running] = {}
    # Asked again only when a trial has ended: it is a question to the storage.
    may_start = True
    while True:
        for lane in lanes:
            if lane in running or not may_start:
                continue
            may_start = _may_start(study, limits, len(running))
            if may_start:
                with _asking():
                    trial = study.ask()
                    running[lane] = _begin(study, trial, space, settings, material, lane)
                yield running[lane].started
        if not running:
            return
        for lane in ready(list(running)):
            at = running[lane]
            events = _advance(study, at, limits)
            # Told only when whoever listens has taken it down: a trial that Optuna knows to be
            # over is never run again.
            yield from events
            if isinstance(events[-1], TrialEnded):
                with _asking():
                    _tell(study, at, events[-1])
                del running[lane]
                may_start = True
                if not at.retry:
                    # They have served.
                    Checkpoints(at.started.folder).remove()


@_asking()
def rows(study: optuna.Study) -> tuple[Row, ...]:
    """Every trial that was not tried again, in the order of their numbers."""
    trials = study.get_trials(deepcopy=False)
    retried = {trial.user_attrs.get(_RETRIED) for trial in trials}
    return tuple(
        Row(
            number=trial.number,
            state=_name(trial.state),
            value=max(trial.intermediate_values.values(), default=None),
            plan=Plan(**trial.user_attrs[_PLAN]),
            folder=Path(trial.user_attrs[_FOLDER]),
            reason=trial.user_attrs.get(_REASON, _reason(trial)),
            seconds=trial.user_attrs.get(_SECONDS, 0.0),
            values=trial.intermediate_values,
            metrics=trial.user_attrs.get(_METRICS, {}),
        )
        for trial in trials
        if _PLAN in trial.user_attrs and trial.state.is_finished() and trial.number not in retried
    )


@_asking()
def importance(study: optuna.Study) -> dict[str, float]:
    """Share of each dimension in the spread of the objective; empty where that cannot be told."""
    trials = study.get_trials(states=(State.COMPLETE,), deepcopy=False)
    searched = [t for t in trials if t.params]
    names = sorted(set.intersection(*(set(t.params) for t in searched))) if searched else []
    varied = [n for n in names if len({t.params[n] for t in searched}) > 1]
    if len(searched) < STARTUP_TRIALS or not varied:
        return {}
    if len({t.value for t in searched}) == 1:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator, params=varied)


@dataclass
class _Running:
    trial: optuna.Trial
    started: TrialStarted
    lane: Lane
    begun: float
    stop: bool = False
    reason: str | None = None
    retry: bool = False
    state: State = State.COMPLETE
    values: list[float] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)


def _begin(
    study: optuna.Study,
    trial: optuna.Trial,
    space: Space,
    settings: Mapping[str, Recipe],
    material: Material,
    lane: Lane,
) -> _Running:
    plan = space.suggest(trial)
    folder = Path(trial.user_attrs.get(_FOLDER, material.folder / TRIALS / f"{trial.number:04d}"))
    shared = settings[plan.source]
    # By name, which a type checker cannot follow: `others` names fields of a recipe.
    recipe = replace(shared, depth=plan.depth, lr=plan.lr, **dict[str, Any](plan.others))
    trial.set_user_attr(_PLAN, asdict(plan))
    trial.set_user_attr(_FOLDER, str(folder))
    attempt, continues = trial.user_attrs.get(_ATTEMPT, 1), trial.user_attrs.get(_RETRIED)
    started = TrialStarted(trial.number, recipe, plan.others, folder, attempt, continues)
    lane.start(recipe, folder)
    return _Running(trial, started, lane, time.monotonic())


def _advance(study: optuna.Study, at: _Running, limits: Limits) -> list[StudyEvent]:
    """The next event of a running trial and, last, its end if that follows from it."""
    number, epochs = at.trial.number, at.started.recipe.epochs
    try:
        event = at.lane.next()
    except WorkerDiedError as error:
        return [_lost(at, str(error))]
    except TrialError as error:
        return [_end(at, State.FAIL, None, str(error))]
    if isinstance(event, EpochEnded):
        _report(at, event)
    more = isinstance(event, StepEnded | StoreFilled) or (
        isinstance(event, EpochEnded) and event.epoch < epochs
    )
    if more and not at.stop and _is_late(limits):
        at.stop, at.reason = True, "the budget was used up"
    if not isinstance(event, FitEnded):
        at.lane.answer(at.stop)
        return [TrialEvent(number, event)]
    if event.reason == "early-stopped":
        at.reason = "no better for too many epochs"
    return [TrialEvent(number, event), _end(at, at.state, event.value, at.reason)]


@_asking()
def _report(at: _Running, event: EpochEnded) -> None:
    at.trial.report(event.value, event.epoch)
    if all(event.value > earlier for earlier in at.values):
        at.metrics = dict(event.metrics)
    at.values.append(event.value)
    # After the last epoch there is nothing left to save.
    if 0 < event.epoch < at.started.recipe.epochs and at.trial.should_prune():
        at.stop, at.state = True, State.PRUNED
        at.reason = f"pruned after epoch {event.epoch}"


def _end(at: _Running, state: State, value: float | None, reason: str | None) -> TrialEnded:
    model = at.started.folder / MODEL if value is not None else None
    seconds = time.monotonic() - at.begun
    return TrialEnded(at.trial.number, _name(state), value, reason, model, seconds)


def _lost(at: _Running, reason: str) -> TrialEnded:
    at.retry = _deaths(at.trial.user_attrs, len(at.values)) + 1 < DEATHS
    if at.retry:
        reason = f"{reason}; it goes on from its checkpoint as another trial"
    return _end(at, State.FAIL, None, reason)


def _tell(study: optuna.Study, at: _Running, ended: TrialEnded) -> None:
    """Let Optuna know how the trial ended."""
    at.trial.set_user_attr(_SECONDS, ended.seconds)
    at.trial.set_user_attr(_METRICS, at.metrics)
    if ended.reason is not None:
        at.trial.set_user_attr(_REASON, ended.reason)
    if at.retry:
        _fail_and_retry(study, study.get_trials(deepcopy=False)[at.trial.number], died=True)
        return
    complete = ended.state == "COMPLETE"
    study.tell(at.trial, ended.value if complete else None, state=State[ended.state])


@_asking()
def _fail_and_retry_running(study: optuna.Study, *, died: bool) -> None:
    """The same of all trials that the storage calls running, none of which is."""
    for trial in study.get_trials(states=(State.RUNNING,), deepcopy=False):
        _fail_and_retry(study, trial, died=died)


def _fail_and_retry(study: optuna.Study, trial: optuna.trial.FrozenTrial, *, died: bool) -> None:
    """Fail a trial that was interrupted, and queue it again to go on from its checkpoint.

    Queued first: dying in between costs no trial, and what is queued already is not queued twice.
    died: whether its process did; a trial whose process does so too often is not queued.
    """
    queued = {t.user_attrs.get(_RETRIED) for t in study.get_trials(deepcopy=False)}
    epochs = len(trial.intermediate_values)
    deaths = _deaths(trial.user_attrs, epochs) + died
    furthest = max(epochs, trial.user_attrs.get(_EPOCHS, 0))
    if trial.number not in queued and deaths < DEATHS:
        kept = {k: v for k, v in trial.user_attrs.items() if k in (PROBE, _FOLDER)}
        attempt = trial.user_attrs.get(_ATTEMPT, 1) + 1
        kept |= {_ATTEMPT: attempt, _DEATHS: deaths, _EPOCHS: furthest}
        # A trial that was killed before it asked for its parameters has those it was queued with.
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        study.enqueue_trial(params, user_attrs={**kept, _RETRIED: trial.number})
    study.tell(trial.number, state=State.FAIL)


def _deaths(attributes: Mapping[str, Any], epochs: int) -> int:
    """How often its process died since it last got further. epochs: that this attempt has."""
    deaths: int = attributes.get(_DEATHS, 0)
    return deaths if epochs <= attributes.get(_EPOCHS, 0) else 0


def _reason(trial: optuna.trial.FrozenTrial) -> str | None:
    """Why it ended, where nobody was left to say so."""
    died = f"its process died {DEATHS} times at the same place"
    return died if trial.state == State.FAIL else None


def _name(state: State) -> TrialState:
    names: dict[State, TrialState] = {State.COMPLETE: "COMPLETE", State.PRUNED: "PRUNED"}
    return names.get(state, "FAIL")


def _is_late(limits: Limits) -> bool:
    return limits.deadline is not None and time.monotonic() >= limits.deadline


def _may_start(study: optuna.Study, limits: Limits, running: int) -> bool:
    return not _is_late(limits) and len(rows(study)) + running < limits.trials
