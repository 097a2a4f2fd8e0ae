"""The run of a command: made or found, logged to, ended, and taken over where a study goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    Metric,
    Param,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import (
    MLFLOW_DATASET_CONTEXT,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NAME,
)
from requests import RequestException

from sft_mlflow.errors import TrackingError, first_line
from sft_mlflow.tracking import outbox
from sft_mlflow.tracking.datasets import DIGEST_LENGTH
from sft_mlflow.tracking.fetch import ModelReference
from sft_mlflow.tracking.messages import KEY, LONGEST_PARAM, PARENT, shortened
from sft_mlflow.tracking.outbox import is_lasting, now


@dataclass(frozen=True)
class ParentRun:
    """The run of this invocation, and the experiment that it is in."""

    run_id: str
    experiment_id: str


def parent_run(client: MlflowClient, name: str, command: str) -> ParentRun:
    """The run that `mlflow run` made for this process, or a new one in the chosen experiment.

    Raises TrackingError where the server cannot be reached.
    """
    try:
        run_id = os.environ.get("MLFLOW_RUN_ID")
        if run_id:
            run = client.get_run(run_id)
            client.set_tag(run_id, MLFLOW_RUN_NAME, name)
            client.set_tag(run_id, "sft.command", command)
            return ParentRun(run_id, run.info.experiment_id)
        experiment_id = _experiment(client)
        run = client.create_run(experiment_id, run_name=name, tags={"sft.command": command})
        return ParentRun(run.info.run_id, experiment_id)
    except MlflowException as error:
        raise TrackingError(
            f"{client.tracking_uri}: no run could be started ({first_line(error)}). "
            f"Check MLFLOW_TRACKING_URI and that its server runs."
        ) from error


@contextmanager
def single(
    client: MlflowClient, name: str, command: str, options: Mapping[str, str]
) -> Iterator[str]:
    """Id of the run of a command that is no study, ended in the way that the block ends."""
    run_id = parent_run(client, name, command).run_id
    given = {f"options.{option}": value for option, value in options.items()}
    params = [Param(k, v) for k, v in shortened(given, LONGEST_PARAM).items()]
    try:
        client.log_batch(run_id, params=params)
        yield run_id
        client.set_terminated(run_id, "FINISHED")
    except BaseException as error:
        end_after(client, run_id, error)
        if not isinstance(error, MlflowException | RequestException):
            raise
        text = f"does not answer any more ({first_line(error)}). The same command goes on."
        if is_lasting(error):
            text = f"refuses this ({first_line(error)}). Look at its log, and at what is before it."
        raise TrackingError(f"{client.tracking_uri}: {text} What was done is kept.") from error


def end_after(client: MlflowClient, run_id: str, error: BaseException) -> None:
    """End a run whose work ended in that error."""
    # A server that is away has its error already; another one would hide it.
    with suppress(MlflowException, RequestException):
        client.set_terminated(run_id, status_after(error))


def status_after(error: BaseException) -> str:
    """The status of a run whose work ended in that error."""
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"


def log_scored_input(client: MlflowClient, run_id: str, uri: str, digest: str) -> None:
    """Show the scored images as the run's data set. digest: of their listing."""
    source = json.dumps({"uri": uri})
    data = Dataset(Path(uri).stem or uri, digest[:DIGEST_LENGTH], "image_files", source)
    client.log_inputs(run_id, [DatasetInput(data, [InputTag(MLFLOW_DATASET_CONTEXT, "scoring")])])


def log_scored(
    client: MlflowClient, run_id: str, model: ModelReference, values: Mapping[str, float]
) -> None:
    """Log by which model a run scored, and its counts and figures."""
    if model.model_id is not None:
        client.log_inputs(run_id, models=[LoggedModelInput(model.model_id)])
    at = now()
    client.log_batch(
        run_id,
        metrics=[Metric(k, v, at, 0) for k, v in values.items()],
        tags=[RunTag("sft.model", model.uri)],
    )


def _experiment(client: MlflowClient) -> str:
    if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return given
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    return client.create_experiment(name)


def adopt(client: MlflowClient, folder: Path, parent: ParentRun) -> None:
    """Move what an earlier, interrupted invocation of the study left under this parent run.

    folder: where that invocation's outbox is. So one run holds the whole study; the earlier
    parent is ended and says who goes on. Raises TrackingError where the server is away.
    """
    ids = outbox.delivered(folder).ids
    earlier = ids.get(PARENT)
    if earlier is None or earlier == parent.run_id:
        return
    try:
        # Found by their tag: the last one may have been made and not been noted, and some may be
        # under a parent whose invocation ended in the middle of this. What a user has deleted is
        # not among them.
        query = f"tags.`{KEY}` LIKE '{ids[outbox.OUTBOX]}/%'"
        before = client.get_run(earlier).info
        # The user may have named another one since.
        for child in _all_runs(client, {before.experiment_id, parent.experiment_id}, query):
            client.set_tag(child.info.run_id, MLFLOW_PARENT_RUN_ID, parent.run_id)
            _end_if_running(client, child.info.run_id, "FAILED")
        if before.lifecycle_stage == "active":
            client.set_tag(earlier, MLFLOW_RUN_NAME, f"{before.run_name} (earlier part)")
            client.set_tag(earlier, "sft.continued_by", parent.run_id)
            _end_if_running(client, earlier, "KILLED")
    except MlflowException as error:
        raise TrackingError(
            f"{client.tracking_uri}: the runs of the interrupted study cannot be taken over "
            f"({first_line(error)}). Is it the server that the study was begun on?"
        ) from error


def _all_runs(client: MlflowClient, experiments: set[str], query: str) -> list[Any]:
    """Every run that the query finds; the server gives them page by page."""
    found: list[Any] = []
    token = None
    while True:
        page = client.search_runs([*experiments], query, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _end_if_running(client: MlflowClient, run_id: str, status: str) -> None:
    if client.get_run(run_id).info.status == "RUNNING":
        client.set_terminated(run_id, status)
