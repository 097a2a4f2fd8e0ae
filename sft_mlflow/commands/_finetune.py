"""`finetune`: from labelled images to a registered model.

data -> sources and their probes -> study -> best trial on the test side -> registry -> report
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from sft_mlflow.commands import closing, opening, settling
from sft_mlflow.commands.observer import Notice, Observer, Progress, StudyBegun, unobserved
from sft_mlflow.commands.study_report import Ended
from sft_mlflow.commands.surroundings import (
    command_line,
    quieten_mlflow,
    short_name,
)
from sft_mlflow.data.loading import Loaded, load_manifest
from sft_mlflow.data.readers import task_for
from sft_mlflow.data.truth import TaskName, ignored_values
from sft_mlflow.errors import OptionsError
from sft_mlflow.home import home
from sft_mlflow.options import FinetuneOptions
from sft_mlflow.reuse.store import Store, size_bytes
from sft_mlflow.search import study as studies
from sft_mlflow.search.space import ladder
from sft_mlflow.search.study import TRIALS
from sft_mlflow.sources.source_model import SourceModel
from sft_mlflow.sources.uri import is_tracked
from sft_mlflow.tasks import TASKS
from sft_mlflow.tracking import connection, fetch, held_out, messages
from sft_mlflow.tracking.mirror import Mirror
from sft_mlflow.training.precision import pick_device
from sft_mlflow.training.trial import Material, source_of

# Of the free disk, for pixels and activations.
SHARE_OF_DISK = 0.2
# What a study that goes on may have otherwise: how long, how fast, and what becomes of the result.
_FREE_OPTIONS = frozenset(
    (
        "trials",
        "budget_minutes",
        "workers",
        "device",
        "register",
        "model_name",
        "study",
        "storage",
        "reuse",
        "cache_gb",
    )
)


def finetune(options: FinetuneOptions, observer: Observer = unobserved) -> closing.Finetuned:
    """Search, train, evaluate, register and report; goes on where a study of that name stopped.

    Raises OptionsError, DataError and TrackingError. However it ends, no run is left RUNNING, and
    the same call with the study's name goes on.
    """
    begun = time.monotonic()
    quieten_mlflow()
    connection.leave_waiting_to_the_outbox()
    # What can be refused is looked at before anything is begun: the cheapest first.
    task = task_for(options.data, None if options.task == "auto" else options.task)
    settling.refuse_unfit(options, task)
    client = connection.connect()
    device = pick_device(options.device)
    name = options.study or f"{short_name(options.data)}-{datetime.now():%Y%m%d-%H%M%S}"
    options = options.model_copy(update={"study": name})
    folder = home() / "studies" / name
    command = command_line("finetune", options)
    options = options.model_copy(update={"task": task})
    observer(Notice(f"Study {name}"))
    fetched = {
        uri: fetch.fetch(client, uri, into=home() / "models").folder
        for uri in options.source
        if is_tracked(uri)
    }
    weights = {
        f"weights of {uri}": source_of(uri, fetched.get(uri)).weights_sha256
        for uri in options.source
    }
    ladders = {
        uri: _ladder(options, task, source_of(uri, fetched.get(uri))) for uri in options.source
    }
    given = studies.open_storage(options.storage) if options.storage else None
    loaded = _load(options, task, observer)
    of_task = "" if task == "classification" else f"-{task}"
    model_name = options.model_name or f"sft-{short_name(loaded.manifest.name)}{of_task}"
    options = options.model_copy(update={"model_name": model_name})
    cache = home() / "cache"
    store = Store(cache, _cache_bytes(cache, options.cache_gb))
    # The budget may be less than what earlier studies left.
    store.make_room()
    material = Material(task, loaded.manifest, folder, device, fetched, store, options.reuse)
    with opening.alone(folder, name):
        storage = given or studies.open_storage(f"sqlite:///{folder / 'study.db'}")
        if (folder / TRIALS).exists() and not studies.is_known(name, storage):
            raise OptionsError(
                f"--study {name}: {folder} holds its trials, but the storage knows none. Give the "
                f"--storage that it was begun with, or another name for a new study."
            )
        study = studies.open_study(
            name,
            storage,
            {**_decisive(options), "data": loaded.manifest.digest, **weights},
            seed=options.seed,
            workers=options.workers,
            prune=options.prune,
        )
        with (
            opening.tracked(client, folder, name, command) as (outbox, parent),
            _told_how_to_go_on(command, observer),
        ):
            opening.keep_options_and_data(options, loaded, outbox, parent, folder)
            settled = settling.settle(options, loaded, material, ladders, observer, begun)
            words = {f"settled.{word}": found for word, found in settling.words_of(settled).items()}
            outbox.put(messages.parameters(parent.run_id, words))
            studies.enqueue_first(study, settled.space)
            if interrupted := studies.requeue_interrupted(study):
                text = (
                    f"Interrupted trials go on from their checkpoints, after what is queued: "
                    f"{', '.join(map(str, interrupted))}"
                )
                observer(Notice(text))
            limits = settling.limits_of(options, loaded, settled, begun)
            earlier = studies.rows(study)
            before = closing.best_of(earlier)
            observer(
                StudyBegun(
                    name,
                    settled.objective,
                    limits.trials if limits.trials < studies.MOST_TRIALS else None,
                    options.epochs,
                    limits.deadline,
                    done=len(earlier),
                    best=(before.value, before.plan.depth, before.number)
                    if before is not None and before.value is not None
                    else None,
                )
            )
            ancestors = frozenset[str]().union(*map(held_out.trained_on, fetched.values()))
            leak = _leak(loaded, ancestors)
            if leak:
                observer(Notice(f"warning: {leak}"))
            mirror = Mirror(
                outbox,
                loaded.manifest,
                settled.objective,
                ancestors=ancestors,
                best=before.value if before else None,
            )
            events = studies.run_study(
                study,
                settled.space,
                {
                    uri: settling.recipe_of(options, settled.recipe, prepared)
                    for uri, prepared in settled.prepared.items()
                },
                material,
                limits,
                options.workers,
            )
            try:
                # However it ends, no trial runs any more before their runs are ended.
                with contextlib.closing(events):
                    for event in events:
                        mirror(event)
                        observer(event)
            finally:
                mirror.close("KILLED")
            ended = Ended(
                options=options,
                loaded=loaded,
                settled=settled,
                limits=limits,
                rows=studies.rows(study),
                importance=studies.importance(study),
                folder=folder,
                device=device,
                command=command,
                page=connection.page_of_run(client, parent.experiment_id, parent.run_id),
                begun=begun,
                warnings=(leak,) if leak else (),
            )
            return closing.close_study(ended, outbox, parent, observer)


@contextlib.contextmanager
def _told_how_to_go_on(command: str, observer: Observer) -> Iterator[None]:
    """Tells the observer, where Ctrl-C ends the block, by which command the study goes on."""
    try:
        yield
    except KeyboardInterrupt:
        observer(Notice(f"Interrupted. To go on where it stopped: {command}"))
        raise


def _ladder(options: FinetuneOptions, task: TaskName, source: SourceModel) -> tuple[int, ...]:
    """The depths to search of that source; its stages do not depend on the number of classes."""
    network = TASKS[task].building.network(source, classes=2)
    return ladder(options.depths, [stage.name for stage in network.stages])


def _load(options: FinetuneOptions, task: TaskName, observer: Observer) -> Loaded:
    """The checked data, and what the check found on the screen."""
    loaded = load_manifest(
        options.data,
        task=task,
        seed=options.seed,
        cache=home() / "data",
        broken=options.broken,
        faulty=options.faulty,
        ignored=ignored_values(options.ignore_index),
        progress=lambda done, total: observer(Progress("Reading images", done, total)),
    )
    for line in loaded.report.lines():
        observer(Notice(line))
    return loaded


def _cache_bytes(folder: Path, wanted_gb: float | None) -> int:
    """What the store may take: as wanted, or a share of the disk that is free or its own."""
    if wanted_gb is not None:
        return int(wanted_gb * 1e9)
    folder.mkdir(parents=True, exist_ok=True)
    return int(SHARE_OF_DISK * (shutil.disk_usage(folder).free + size_bytes(folder)))


def _decisive(options: FinetuneOptions) -> dict[str, str]:
    """What may not change when a study goes on, by the word that names it to the user."""
    return {k: v for k, v in options.as_text().items() if k not in _FREE_OPTIONS}


def _leak(loaded: Loaded, ancestors: frozenset[str]) -> str | None:
    """That a source has seen test images, in words. ancestors: digests it was trained on."""
    seen = sum(sample.digest in ancestors for sample in loaded.manifest.side("test"))
    if not seen:
        return None
    return f"a source was trained on {seen} of the test images: the test figures are too good"
