"""Promotion: champion and challenger on the same test images, a gate, and the alias that moves.

candidate -> version of the registered model
repeat:  read the champion -> answers of both to the test images -> verdict of the gate
         under the lock:  champion still the same?  -> log, move aliases, tag
-> figures, decision and test manifest on the run
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from mlflow import MlflowClient
from mlflow.entities import DatasetInput, InputTag, Metric, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from sft_mlflow.data.loading import save_manifest
from sft_mlflow.data.manifest import Manifest
from sft_mlflow.data.truth import TaskName
from sft_mlflow.errors import OptionsError, TrackingError
from sft_mlflow.sources import model_folder
from sft_mlflow.tasks import TASKS
from sft_mlflow.tasks.base import Frame
from sft_mlflow.tasks.predictor import Predictor
from sft_mlflow.tracking import held_out
from sft_mlflow.tracking.datasets import dataset_of
from sft_mlflow.tracking.decisions import TAG, Entry, decisions, move, record, settle
from sft_mlflow.tracking.fetch import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    FetchedModel,
    download,
    fetch,
    reference_of,
    version_at,
)
from sft_mlflow.tracking.gate import Condition, Contestant, Gate, Verdict, judge
from sft_mlflow.tracking.lock import LockLostError, promotion_lock
from sft_mlflow.tracking.outbox import now
from sft_mlflow.tracking.versions import version_of

__all__ = ["Decision", "JudgedImages", "decisions", "promote", "rollback"]

TEST_READINGS = "sft.test_readings"
_ATTEMPTS = 5


@dataclass(frozen=True)
class JudgedImages:
    """What the decision was made on.

    digest: of the manifest of the `images` that counted; the others are those left out.
    """

    name: str
    uri: str
    digest: str
    images: int
    broken: int
    seen_by_challenger: int
    seen_by_champion: int


@dataclass(frozen=True)
class Decision:
    """What came of a promotion or a rollback.

    outcome: "unchanged" where the candidate already is the champion; version: of the candidate, or
    the one brought back; champion: the version before it; number: in the log of decisions, None
    where nothing was decided; verdict and test: None where nothing was compared.
    """

    outcome: Literal["promoted", "refused", "rolled back", "unchanged"]
    model_name: str
    version: str
    champion: str | None
    number: int | None = None
    verdict: Verdict | None = None
    test: JudgedImages | None = None

    @property
    def failed(self) -> tuple[Condition, ...]:
        """The conditions that a refused candidate did not meet."""
        return self.verdict.failed if self.verdict is not None else ()


@dataclass(frozen=True, eq=False)
class _Tested:
    """A model's answers to all test images, and the images it was trained on."""

    answers: Contestant
    saw: frozenset[str]


def promote(
    client: MlflowClient,
    *,
    model_name: str,
    run_id: str,
    cache: Path,
    candidate: str = "",
    data: str = "",
    ignored: frozenset[str] = frozenset(),
    gate: Gate = Gate(),  # noqa: B008 - frozen
    device: str = "cpu",
) -> Decision:
    """The decision on the candidate; if it passes the gate, the alias `champion` has moved to it.

    candidate: `models:/...` or `runs:/...`, by default the alias `challenger` of model_name; one
    that is no version of model_name yet becomes one. data: test data, by default the test side of
    the candidate's own data; images that either model was trained on are left out and counted.
    ignored: values of its masks that count for nothing. cache: folder for fetched models and named
    data sets. The old champion becomes `previous`. The decision goes to the run (metrics,
    `promotion/decision.json`, the test manifest), to the log of the registered model, and to tags
    on both versions, whose `sft.test_readings` count up.
    If another promotion moves the champion meanwhile, this one starts over against the new one.
    Raises OptionsError, DataError and TrackingError; a refusal is a Decision.
    """
    model = fetch(client, candidate or f"models:/{model_name}@{CHALLENGER}", into=cache / "models")
    task = model_folder.read_config(model.folder).task
    metrics = TASKS[task].judging.metrics
    if gate.metric not in ("auto", *metrics):
        raise OptionsError(f"--metric {gate.metric}: {task} has {' and '.join(metrics)}.")
    version = _version_of(client, model_name, model, run_id)
    before = _champion(client, model_name)
    if before == version:
        return _unchanged(client, run_id, model_name, version)

    test = (
        held_out.given_test_data(data, task=task, ignored=ignored, cache=cache / "data")
        if data
        else held_out.own_test_side(model.folder)
    )
    classes = model_folder.read_config(model.folder).classes
    held_out.require_known(test.manifest, classes, model.reference.label)
    challenger = _tested(model.folder, task, test.manifest, device)
    _count_readings(client, model_name, version, run_id)
    champions: dict[str, _Tested] = {}
    for _ in range(_ATTEMPTS):
        before = _champion(client, model_name)
        if before == version:
            return _unchanged(client, run_id, model_name, version)
        if before is not None and before not in champions:
            folder = _folder_of(client, model_name, before, cache)
            champions[before] = _tested(folder, task, test.manifest, device)
            _count_readings(client, model_name, before, run_id)
        champion = champions.get(before) if before is not None else None
        unseen = held_out.unseen(test, challenger.saw, champion.saw if champion else frozenset())
        verdict = judge(
            gate,
            TASKS[task].judging,
            unseen.manifest.samples,
            _kept(task, challenger, unseen),
            _kept(task, champion, unseen) if champion else None,
        )
        number = _decide(client, model_name, version, before, verdict, unseen, run_id)
        if number is None:
            continue
        decision = Decision(
            outcome="promoted" if verdict.passed else "refused",
            model_name=model_name,
            version=version,
            champion=before,
            number=number,
            verdict=verdict,
            test=JudgedImages(
                name=unseen.manifest.name,
                uri=unseen.manifest.uri,
                digest=unseen.manifest.digest,
                images=len(unseen.manifest.samples),
                broken=test.broken,
                seen_by_challenger=unseen.seen_by_challenger,
                seen_by_champion=unseen.seen_by_champion,
            ),
        )
        _log(client, run_id, decision, unseen.manifest)
        return decision
    raise TrackingError(
        f"models:/{model_name}: the champion changed {_ATTEMPTS} times while version {version} was "
        "being compared with it. Start again when other promotions have ended."
    )


def rollback(client: MlflowClient, *, model_name: str, run_id: str) -> Decision:
    """The decision that brought the alias `previous` back as `champion`.

    The two change places, so a second rollback undoes the first. Raises TrackingError where there
    is no previous champion.
    """
    with promotion_lock(client, model_name, run_id=run_id) as lock:
        number = len(settle(client, model_name)) + 1
        previous = version_at(client, model_name, PREVIOUS)
        before = _champion(client, model_name)
        if previous is None or before is None or str(previous.version) == before:
            raise TrackingError(
                f"models:/{model_name}: has no {PREVIOUS!r} champion to bring back. Promote a "
                f"version instead: --model models:/{model_name}/VERSION."
            )
        version = str(previous.version)
        entry = Entry(number, "rolled back", version, before, run_id, _now(), "moving")
        move(client, model_name, entry, lock)
    decision = Decision("rolled back", model_name, version, before, number)
    _log(client, run_id, decision, None)
    return decision


def _decide(
    client: MlflowClient,
    model_name: str,
    version: str,
    before: str | None,
    verdict: Verdict,
    unseen: held_out.Unseen,
    run_id: str,
) -> int | None:
    """Number of the logged decision, None where the champion is no longer the one compared with."""
    compared = verdict.comparison
    figures = compared.challenger if compared else verdict.challenger
    try:
        with promotion_lock(client, model_name, run_id=run_id) as lock:
            number = len(settle(client, model_name)) + 1
            if _champion(client, model_name) != before:
                return None
            entry = Entry(
                number=number,
                outcome="promoted" if verdict.passed else "refused",
                version=version,
                champion=before,
                run_id=run_id,
                time=_now(),
                state="moving" if verdict.passed else "done",
                metric=verdict.metric,
                figure=figures.values[verdict.metric],
                champion_figure=compared.champion.values[verdict.metric] if compared else None,
                test_digest=unseen.manifest.digest,
                failed=tuple(condition.name for condition in verdict.failed),
            )
            if verdict.passed:
                move(client, model_name, entry, lock)
            else:
                lock.verify()
                record(client, model_name, entry)
    except LockLostError:
        return None
    return number


def _version_of(client: MlflowClient, model_name: str, model: FetchedModel, run_id: str) -> str:
    """The version of model_name that is this model, registered if there is none yet."""
    reference = model.reference
    if reference.name == model_name and reference.version is not None:
        return reference.version
    with promotion_lock(client, model_name, run_id=run_id):
        found = version_of(
            client,
            model_name,
            reference.model_id,
            source=f"models:/{reference.model_id}" if reference.model_id else reference.location,
            run_id=reference.run_id,
            tags={k: v for k, v in reference.tags.items() if k.startswith("sft.")},
        )
        return str(found.version)


def _champion(client: MlflowClient, model_name: str) -> str | None:
    version = version_at(client, model_name, CHAMPION)
    return None if version is None else str(version.version)


def _folder_of(client: MlflowClient, model_name: str, version: str, cache: Path) -> Path:
    reference = reference_of(client, client.get_model_version(model_name, version))
    return download(client, reference, into=cache / "models")


def _tested(folder: Path, task: TaskName, test: Manifest, device: str) -> _Tested:
    predictor = Predictor.load(folder, device)
    if predictor.config.task != task:
        raise OptionsError(
            f"{folder.name}: the champion is a model for {predictor.config.task}, the candidate "
            f"one for {task}. Give the candidate a model name of its own."
        )
    frame = Frame.of_model(predictor.config, test)
    found = held_out.evidence(predictor, test.samples, frame)
    return _Tested(Contestant(frame, found), held_out.trained_on(folder))


def _kept(task: TaskName, tested: _Tested, unseen: held_out.Unseen) -> Contestant:
    found = tested.answers
    return replace(found, evidence=TASKS[task].judging.subset(found.evidence, unseen.kept))


def _count_readings(client: MlflowClient, model_name: str, version: str, run_id: str) -> None:
    # Under the lock, because MLflow cannot count up a tag in one step.
    with promotion_lock(client, model_name, run_id=run_id):
        tags = client.get_model_version(model_name, version).tags
        readings = int(tags.get(TEST_READINGS, "0")) + 1
        client.set_model_version_tag(model_name, version, TEST_READINGS, str(readings))


def _unchanged(client: MlflowClient, run_id: str, model_name: str, version: str) -> Decision:
    decision = Decision("unchanged", model_name, version, version)
    _log(client, run_id, decision, None)
    return decision


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _log(client: MlflowClient, run_id: str, decision: Decision, test: Manifest | None) -> None:
    at = now()
    client.log_batch(
        run_id,
        metrics=[Metric(name, value, at, 0) for name, value in _metrics(decision).items()],
        tags=[RunTag(TAG, decision.outcome)],
    )
    content = {**asdict(decision), "failed": [c.name for c in decision.failed]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "decision.json")
        path.write_text(json.dumps(content, indent=2))
        if test is not None:
            save_manifest(test, Path(folder, "test_manifest.parquet"))
        client.log_artifacts(run_id, folder, "promotion")
    if test is not None:
        tags = [InputTag(MLFLOW_DATASET_CONTEXT, "test")]
        dataset = dataset_of(test)._to_mlflow_entity()
        client.log_inputs(run_id, [DatasetInput(dataset, tags)])


def _metrics(decision: Decision) -> dict[str, float]:
    if decision.verdict is None or decision.test is None:
        return {}
    verdict = decision.verdict
    compared = verdict.comparison
    found: dict[str, float] = {
        "test/images": decision.test.images,
        "test/seen_by_challenger": decision.test.seen_by_challenger,
        "test/seen_by_champion": decision.test.seen_by_champion,
        **{f"challenger/{name}": value for name, value in verdict.challenger.values.items()},
    }
    if compared is not None:
        before, after = compared.champion.values, compared.challenger.values
        found |= {f"champion/{name}": value for name, value in before.items()}
        found |= {
            f"gate/{name}_gain": after[name] - before[name] for name in before.keys() & after.keys()
        }
        found |= {
            "gate/compared_images": compared.challenger.images,
            "gate/p_better": compared.p_better,
            "gate/p_worse": compared.p_worse,
            "gate/largest_class_drop": max((c.drop for c in compared.classes), default=0.0),
        }
    return found
