"""`finetune`: from labelled images to a registered model.

data -> sources and their probes -> study -> best trial on the test side -> registry -> report
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sft_mlflow.commands.observer import Notice, Observer, Progress, StudyBegun, unobserved
from sft_mlflow.commands.study_report import Closing, study_report, test_figures
from sft_mlflow.commands.surroundings import command_line, home, quieten_mlflow
from sft_mlflow.data.loading import Loaded, load_manifest, save_manifest
from sft_mlflow.errors import DataError, OptionsError, TrackingError
from sft_mlflow.options import FinetuneOptions
from sft_mlflow.report.html import render
from sft_mlflow.report.tables import StudyReport, TestFigures
from sft_mlflow.report.text import summary_lines
from sft_mlflow.search import study as studies
from sft_mlflow.search.space import Space, ladder
from sft_mlflow.search.study import Limits, Row
from sft_mlflow.sources import model_folder
from sft_mlflow.sources.uri import is_tracked
from sft_mlflow.tasks import TASKS
from sft_mlflow.tracking import connection, fetch, held_out, promotion, runs
from sft_mlflow.tracking.datasets import dataset_of
from sft_mlflow.tracking.guardian import guarded
from sft_mlflow.tracking.mirror import Mirror, key_of, model_tags
from sft_mlflow.tracking.outbox import Outbox, now
from sft_mlflow.training.optimisers import class_weights
from sft_mlflow.training.precision import pick_device
from sft_mlflow.training.prepare import Prepared, prepare
from sft_mlflow.training.recipe import Recipe
from sft_mlflow.training.trial import MODEL, Material

DEFAULT_TRIALS = 12
# Registration, report and the last messages, beside the evaluation whose length is estimated.
CLOSING_SECONDS = 10.0
# What a study that goes on may have otherwise: how long, how fast, and what becomes of the result.
_FREE_OPTIONS = frozenset(
    ("trials", "budget_minutes", "workers", "device", "register", "model_name", "study", "storage")
)
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


@dataclass(frozen=True)
class _Settled:
    """What follows from options and data before the first trial."""

    objective: str
    objective_reason: str
    class_weights: tuple[float, ...] | None
    prepared: Mapping[str, Prepared]
    space: Space


def finetune(options: FinetuneOptions, observer: Observer = unobserved) -> Finetuned:
    """Search, train, evaluate, register and report; goes on where a study of that name stopped.

    Raises OptionsError, DataError and TrackingError. However it ends, no run is left RUNNING, and
    the same call with the study's name goes on.
    """
    begun = time.monotonic()
    quieten_mlflow()
    client = connection.connect()
    device = pick_device(options.device)
    name = options.study or f"{_short_name(options.data)}-{datetime.now():%Y%m%d-%H%M%S}"
    options = options.model_copy(update={"study": name})
    folder = home() / "studies" / name
    command = command_line("finetune", options)
    with _alone(folder, name), _tracked(client, folder, name, command) as (outbox, parent):
        observer(Notice(f"Study {name}"))
        outbox.put(
            runs.parameters(
                parent.run_id, {f"options.{k}": v for k, v in options.as_text().items()}
            )
        )
        loaded = _load(options, observer)
        fetched = {
            uri: fetch.fetch(client, uri, into=home() / "models").folder
            for uri in options.source
            if is_tracked(uri)
        }
        material = Material(options.task, loaded.manifest, folder, device, fetched)
        study = studies.open_study(
            name,
            options.storage or f"sqlite:///{folder / 'study.db'}",
            _fingerprint(options, loaded, material),
            options.seed,
            options.workers,
        )
        _keep_data(options, loaded, outbox, parent, folder)
        settled = _settle(options, loaded, material, observer)
        studies.enqueue_first(study, settled.space)
        if interrupted := studies.requeue_interrupted(study):
            observer(Notice(f"{len(interrupted)} interrupted trials go on from their checkpoints."))
        limits = _limits(options, loaded, settled, begun)
        observer(
            StudyBegun(
                name,
                settled.objective,
                limits.trials if limits.trials < studies.MOST_TRIALS else None,
                options.epochs,
                limits.deadline,
            )
        )
        before = _best(studies.rows(study))
        ancestors = frozenset[str]().union(*map(held_out.trained_on, fetched.values()))
        seen = sum(s.digest in ancestors for s in loaded.manifest.side("test"))
        leak = (
            f"a source was trained on {seen} of the test images: the test figures are too good"
            if seen
            else None
        )
        if leak:
            observer(Notice(f"warning: {leak}"))
        mirror = Mirror(
            outbox,
            loaded.manifest,
            settled.objective,
            ancestors=ancestors,
            best=before.value if before else None,
        )
        try:
            for event in studies.run_study(
                study,
                settled.space,
                {uri: _recipe(options, settled, uri) for uri in options.source},
                material,
                limits,
                options.workers,
            ):
                mirror(event)
                observer(event)
        except KeyboardInterrupt:
            observer(Notice(f"Interrupted; no more than an epoch is lost. To go on: {command}"))
            raise
        finally:
            mirror.close("KILLED")

        rows = studies.rows(study)
        best = _best(rows)
        figures = None
        if best is not None:
            observer(Notice(f"Testing trial {best.number}, the best on validation"))
            figures = test_figures(loaded.manifest, best.folder / MODEL, str(device), options.seed)
            _put_test(outbox, parent, best, figures)
        model_name = options.model_name or f"sft-{_short_name(loaded.manifest.name)}"
        _register(options, outbox, model_name, rows, best, loaded)
        delivered = _flush(outbox, name, observer)
        version = delivered.get(runs.version_key(key_of(best.number))) if best else None
        model_id = delivered.get(runs.model_id_key(key_of(best.number))) if best else None
        report = study_report(
            Closing(
                options=options,
                loaded=loaded,
                objective=settled.objective,
                objective_reason=settled.objective_reason,
                prepared=settled.prepared,
                rows=rows,
                importance=studies.importance(study),
                best=best,
                test=figures,
                model_name=model_name,
                version=version,
                model_id=model_id,
                command=command,
                page=connection.page_of_run(client, parent.experiment_id, parent.run_id),
                seconds=time.monotonic() - begun,
                notes=(
                    *((leak,) if leak else ()),
                    *(f"the tracking server refused {what}" for what in outbox.refused),
                ),
            )
        )
        (folder / "report.html").write_text(render(report))
        outbox.put(runs.files(parent.run_id, {"report.html": folder / "report.html"}))
        summary = tuple(summary_lines(report))
        note = "The whole story is in the artifact `report.html`.\n\n" + "\n".join(
            f"    {line}" for line in summary
        )
        outbox.put(runs.tags(parent.run_id, {runs.DESCRIPTION: note}))
        if best is not None and model_id is not None:
            outbox.put(runs.tags(parent.run_id, {fetch.BEST_MODEL: model_id}))
            outbox.put(runs.output(parent.run_id, key_of(best.number)))
        _tidy(folder, rows, best, _flush(outbox, name, observer))
    return Finetuned(name, parent.run_id, model_name, version, model_id, report, summary)


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Hold the study for this process; its death, however it dies, lets go of it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "running.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OptionsError(
            f"--study {name}: another process is running it. Wait for it, or take --workers to "
            f"run more trials side by side."
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _tracked(
    client: Any, folder: Path, name: str, command: str
) -> Iterator[tuple[Outbox, runs.ParentRun]]:
    """The parent run and the outbox, ended in the way that the block ends."""
    parent = runs.parent_run(client, name, command)
    status = "FAILED"
    with guarded(client.tracking_uri, parent.experiment_id, parent.run_id):
        try:
            runs.adopt(client, folder, parent)
        except TrackingError:
            client.set_terminated(parent.run_id, status)
            raise
        outbox = Outbox(
            folder,
            runs.Delivery(client, parent.experiment_id),
            # Children are made under the parent of this invocation, whoever queued them; what is
            # said of a parent is said of that one.
            {runs.PARENT: parent.run_id, parent.run_id: parent.run_id},
        )
        try:
            yield outbox, parent
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            outbox.put(runs.ended(parent.run_id, status, now()))
            outbox.flush(CLOSING_SECONDS)
            outbox.close()


def _load(options: FinetuneOptions, observer: Observer) -> Loaded:
    """The checked data, and what the check found on the screen."""
    loaded = load_manifest(
        options.data,
        seed=options.seed,
        cache=home() / "data",
        broken=options.broken,
        progress=lambda done, total: observer(Progress("Reading images", done, total)),
    )
    for line in loaded.report.lines():
        observer(Notice(line))
    return loaded


def _keep_data(
    options: FinetuneOptions, loaded: Loaded, outbox: Outbox, parent: runs.ParentRun, folder: Path
) -> None:
    """Put manifest, check and broken files where the study is, and on the parent run."""
    save_manifest(loaded.manifest, folder / "manifest.parquet")
    (folder / "check.json").write_text(json.dumps(loaded.report.to_dict(), indent=2))
    broken = [{"path": str(b.path), "label": b.label, "reason": b.reason} for b in loaded.broken]
    (folder / "broken_files.json").write_text(json.dumps(broken, indent=2))
    names = ("manifest.parquet", "check.json", "broken_files.json")
    outbox.put(runs.files(parent.run_id, {f"data/{name}": folder / name for name in names}))
    outbox.put(runs.dataset(parent.run_id, dataset_of(loaded.manifest), "training"))
    outbox.put(
        runs.tags(
            parent.run_id,
            {
                "sft.study": options.study,
                "sft.data_digest": loaded.manifest.digest,
                "sft.broken_files": str(len(broken)),
            },
        )
    )


def _settle(
    options: FinetuneOptions, loaded: Loaded, material: Material, observer: Observer
) -> _Settled:
    counts = loaded.manifest.counts("train")
    if options.metric == "auto":
        objective, reason = TASKS[options.task].objective(counts)
    else:
        objective, reason = options.metric, "as asked for"
    observer(Notice(f"Objective: {objective} on validation ({reason})"))
    weights = None
    imbalanced = objective == "macro_f1" and options.metric == "auto"
    if options.class_weights == "on" or (options.class_weights == "auto" and imbalanced):
        weights = class_weights(counts.values())
    prepared = {
        uri: _prepared(options, loaded, material, uri, objective, weights, observer)
        for uri in options.source
    }
    ladders = {uri: ladder(options.depths, p.stages) for uri, p in prepared.items()}
    with_probe = options.head_start == "probe"
    space = Space(
        ladders={
            uri: tuple(d for d in depths if d or not with_probe) for uri, depths in ladders.items()
        },
        probes=tuple(uri for uri, depths in ladders.items() if with_probe and 0 in depths),
        lr_min=options.lr_min,
        lr_max=options.lr_max,
    )
    return _Settled(objective, reason, weights, prepared, space)


def _prepared(
    options: FinetuneOptions,
    loaded: Loaded,
    material: Material,
    uri: str,
    objective: str,
    weights: tuple[float, ...] | None,
    observer: Observer,
) -> Prepared:
    """What the probe of the source tells; a study that goes on keeps what it was begun with.

    Above all the precision, which was measured: on another day another one could be faster.
    """
    path = material.folder / "prepared.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    if uri in kept:
        return Prepared.from_dict(kept[uri])
    observer(Notice(f"Fitting the linear probe of {uri}"))
    found = prepare(
        material,
        uri,
        image_size=options.image_size,
        shorter_side=loaded.shorter_side,
        augmentation=None if options.augment == "auto" else options.augment,
        precision=None if options.precision == "auto" else options.precision,
        epochs=options.epochs,
        batch_size=options.batch_size,
        class_weights=weights,
        metric=objective,
        progress=lambda done, total: observer(Progress("Decoding images", done, total)),
    )
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({**kept, uri: asdict(found)}, indent=2))
    partial.replace(path)
    observer(
        Notice(
            f"  {found.image_size} px, {found.full_depth} stages, {found.precision}, "
            f"augmentation {found.augmentation}; probe: {objective} "
            f"{found.metrics[f'valid/{objective}']:.4f}"
        )
    )
    return found


def _recipe(options: FinetuneOptions, settled: _Settled, uri: str) -> Recipe:
    prepared = settled.prepared[uri]
    return Recipe(
        source=uri,
        depth=0,
        lr=None,
        epochs=options.epochs,
        batch_size=options.batch_size,
        image_size=prepared.image_size,
        optimizer=options.optimizer,
        weight_decay=options.weight_decay,
        layer_decay=options.layer_decay,
        label_smoothing=options.label_smoothing,
        class_weights=settled.class_weights,
        augmentation=prepared.augmentation,
        head_start=options.head_start,
        patience=options.patience,
        precision=prepared.precision,
        metric=settled.objective,
        seed=options.seed,
    )


def _fingerprint(options: FinetuneOptions, loaded: Loaded, material: Material) -> dict[str, str]:
    """What may not change when a study goes on, by the word that names it to the user."""
    decisive = {k: v for k, v in options.as_text().items() if k not in _FREE_OPTIONS}
    weights = {f"weights of {uri}": material.source(uri).weights_sha256 for uri in options.source}
    return {**decisive, "data": loaded.manifest.digest, **weights}


def _limits(options: FinetuneOptions, loaded: Loaded, settled: _Settled, begun: float) -> Limits:
    if options.budget_minutes is None:
        return Limits(options.trials or DEFAULT_TRIALS, None)
    slowest = max(p.seconds_an_image for p in settled.prepared.values())
    # The test side is read from its files; trials that are stopped still validate once or twice.
    testing = 2 * slowest * len(loaded.manifest.side("test"))
    testing += 2 * slowest * len(loaded.manifest.side("valid")) * options.workers
    deadline = begun + options.budget_minutes * 60 - testing - CLOSING_SECONDS
    if deadline <= time.monotonic():
        raise OptionsError(
            f"--budget-minutes {options.budget_minutes:g} is used up before the first trial: "
            f"reading the data, the probe and the evaluation take "
            f"{(time.monotonic() - begun + testing + CLOSING_SECONDS) / 60:.1f} minutes."
        )
    return Limits(options.trials or studies.MOST_TRIALS, deadline)


def _best(rows: tuple[Row, ...]) -> Row | None:
    """The finished trial with the best validation; of equals the one that trains less."""
    finished = [row for row in rows if row.state == "COMPLETE" and row.value is not None]
    return max(finished, key=lambda r: (r.value or -math.inf, -r.plan.depth), default=None)


def _put_test(outbox: Outbox, parent: runs.ParentRun, best: Row, figures: TestFigures) -> None:
    values: dict[str, float] = {}
    for name, interval in figures.figures.items():
        values[f"test/{name}"] = interval.value
        values[f"test/{name}_low"] = interval.low
        values[f"test/{name}_high"] = interval.high
    values["test/ece"] = figures.calibration.ece_after
    values["test/ece_before_scaling"] = figures.calibration.ece_before
    outbox.put(runs.metrics(parent.run_id, values, 0, now()))
    outbox.put(runs.metrics(key_of(best.number), values, 0, now()))
    outbox.put(
        runs.tags(
            parent.run_id, {"sft.best_trial": str(best.number), "sft.depth": str(best.plan.depth)}
        )
    )


def _register(
    options: FinetuneOptions,
    outbox: Outbox,
    model_name: str,
    rows: tuple[Row, ...],
    best: Row | None,
    loaded: Loaded,
) -> None:
    """Queue the registration of what `register` names; the best gets the alias `challenger`."""
    if options.register_ == "none" or best is None:
        return
    with_model = [r for r in rows if model_folder.is_model_folder(r.folder / MODEL)]
    chosen = with_model if options.register_ == "all" else [best]
    # The best last, so that the newest version is the one to look at.
    for row in sorted(chosen, key=lambda r: r.number == best.number):
        config = model_folder.read_config(row.folder / MODEL)
        tags = {**model_tags(loaded.manifest, config), "sft.study": options.study}
        alias, first_tags = None, {}
        if row.number == best.number:
            alias = fetch.CHALLENGER
            # This study has read the test data once; promotions count on from here.
            first_tags = {promotion.TEST_READINGS: "1"}
        outbox.put(runs.registered(key_of(row.number), model_name, alias, tags, first_tags))


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
    """Remove what the tracking server now holds, and pixels that can be decoded again."""
    for path in folder.glob("pixels/pixels-*"):
        path.unlink()
    for row in rows:
        if row != best and runs.model_id_key(key_of(row.number)) in delivered:
            (row.folder / MODEL / model_folder.WEIGHTS).unlink(missing_ok=True)


def _short_name(data: str) -> str:
    stem = Path(data).stem if "/" in data or "\\" in data else data
    kept = "".join(c if c.isalnum() or c in "-_" else "-" for c in stem).strip("-").lower()
    if not kept:
        raise DataError(f"--data {data!r}: no name for the study follows from it; give --study.")
    return kept
