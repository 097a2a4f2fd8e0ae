"""The beginning of a study: held by this process alone, and shown by a parent run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sft_mlflow.data.loading import Loaded, save_manifest
from sft_mlflow.errors import OptionsError
from sft_mlflow.options import FinetuneOptions
from sft_mlflow.tracking import messages, runs
from sft_mlflow.tracking.datasets import dataset_of
from sft_mlflow.tracking.guardian import guarded
from sft_mlflow.tracking.outbox import Outbox, now

# For the last messages of a study that ends otherwise than it should.
FAREWELL_SECONDS = 10.0


@contextmanager
def alone(folder: Path, name: str) -> Iterator[None]:
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
def tracked(
    client: Any, folder: Path, name: str, command: str
) -> Iterator[tuple[Outbox, runs.ParentRun]]:
    """The parent run and the outbox, ended in the way that the block ends."""
    parent = runs.parent_run(client, name, command)
    status = "FINISHED"
    with guarded(client.tracking_uri, parent.experiment_id, parent.run_id):
        try:
            runs.adopt(client, folder, parent)
            outbox = Outbox(
                folder,
                messages.Delivery(client, parent.experiment_id),
                # Children are made under the parent of this invocation, whoever queued them; what
                # is said of a parent is said of that one.
                {messages.PARENT: parent.run_id, parent.run_id: parent.run_id},
            )
            # Their process was killed, and what goes on of them has runs of its own.
            for key in messages.left_open(outbox.inherited):
                outbox.put(messages.ended(key, "FAILED", now()))
        except BaseException as error:
            runs.end_after(client, parent.run_id, error)
            raise
        try:
            yield outbox, parent
        except BaseException as error:
            status = runs.status_after(error)
            raise
        finally:
            try:
                outbox.put(messages.ended(parent.run_id, status, now()))
                outbox.flush(FAREWELL_SECONDS)
            finally:
                outbox.close()


def keep_options_and_data(
    options: FinetuneOptions, loaded: Loaded, outbox: Outbox, parent: runs.ParentRun, folder: Path
) -> None:
    """Put options, manifest, check and broken files on the parent run, and where the study is."""
    given = {f"options.{name}": value for name, value in options.as_text().items()}
    outbox.put(messages.parameters(parent.run_id, given))
    save_manifest(loaded.manifest, folder / "manifest.parquet")
    (folder / "check.json").write_text(json.dumps(loaded.report.to_dict(), indent=2))
    broken = [{"path": str(b.path), "label": b.label, "reason": b.reason} for b in loaded.broken]
    (folder / "broken_files.json").write_text(json.dumps(broken, indent=2))
    names = ("manifest.parquet", "check.json", "broken_files.json")
    outbox.put(messages.files(parent.run_id, {f"data/{name}": folder / name for name in names}))
    outbox.put(messages.dataset(parent.run_id, dataset_of(loaded.manifest), "training"))
    outbox.put(
        messages.tags(
            parent.run_id,
            {
                "sft.study": options.study,
                "sft.data_digest": loaded.manifest.digest,
                "sft.broken_files": str(len(broken)),
            },
        )
    )
