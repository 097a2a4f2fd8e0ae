"""The study in MLflow: one parent run, one child run a trial, and the messages that make them.

Optuna's storage is the truth about trials and MLflow mirrors it: COMPLETE is FINISHED, PRUNED is
KILLED with a tag, FAIL is FAILED. Runs are always named by their ids: under `mlflow run` the active
run of this process would be the launcher's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
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
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.utils.mlflow_tags import (
    MLFLOW_DATASET_CONTEXT,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NAME,
)
from PIL import Image

from sft_mlflow.errors import TrackingError
from sft_mlflow.tasks import TASKS
from sft_mlflow.tracking import outbox, packaging
from sft_mlflow.tracking.datasets import DIGEST_LENGTH, ImageDataset
from sft_mlflow.tracking.fetch import ModelReference, model_id_of
from sft_mlflow.tracking.outbox import Message, now

PARENT = "parent"
# MLflow shows this tag as the description of a run, as Markdown.
DESCRIPTION = "mlflow.note.content"
KEY = "sft.key"
STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
# MLflow's own limits on one value of a parameter and of a tag.
LONGEST_PARAM, LONGEST_TAG = 6000, 5000


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
            f"{client.tracking_uri}: no run could be started ({str(error).splitlines()[0]}). "
            f"Check MLFLOW_TRACKING_URI and that its server runs."
        ) from error


@contextmanager
def single(
    client: MlflowClient, name: str, command: str, options: Mapping[str, str]
) -> Iterator[str]:
    """Id of the run of a command that is no study, ended in the way that the block ends."""
    parent = parent_run(client, name, command)
    status = "FAILED"
    try:
        for option, value in _cut(options, LONGEST_PARAM).items():
            client.log_param(parent.run_id, f"options.{option}", value)
        yield parent.run_id
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    except MlflowException as error:
        raise TrackingError(
            f"{client.tracking_uri}: does not answer any more ({str(error).splitlines()[0]}). "
            f"What was done is kept; the same command goes on."
        ) from error
    finally:
        # A server that is away already has its error; another one would hide it.
        with suppress(*([] if status == "FINISHED" else [MlflowException])):
            client.set_terminated(parent.run_id, status)


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
    client.log_batch(
        run_id,
        metrics=[Metric(k, v, now(), 0) for k, v in values.items()],
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


def created(key: str, name: str, tags: Mapping[str, str], started: int) -> Message:
    """A child run begins. key: what later messages call it."""
    return {"kind": "run", "key": key, "name": name, "tags": dict(tags), "time": started}


def parameters(key: str, values: Mapping[str, str]) -> Message:
    """Parameters of a run; long values are cut, as MLflow would refuse them."""
    return {"kind": "parameters", "key": key, "values": _cut(values, LONGEST_PARAM)}


def metrics(key: str, values: Mapping[str, float], step: int, timestamp: int) -> Message:
    """Metrics of a run at a step."""
    return {"kind": "metrics", "key": key, "values": dict(values), "step": step, "time": timestamp}


def tags(key: str, values: Mapping[str, str]) -> Message:
    """Tags of a run."""
    return {"kind": "tags", "key": key, "values": _cut(values, LONGEST_TAG)}


def files(key: str, paths: Mapping[str, Path]) -> Message:
    """Artifacts of a run: for each file, the artifact path that it gets, file name included."""
    return {"kind": "files", "key": key, "paths": {k: str(v) for k, v in paths.items()}}


def dataset(key: str, data: ImageDataset, context: str) -> Message:
    """The data set of a run, as the UI shows it. context: what it is used for."""
    entity = data._to_mlflow_entity().to_dictionary()
    return {"kind": "dataset", "key": key, "dataset": entity, "context": context}


def image(key: str, name: str, path: Path, step: int, time: int) -> Message:
    """A picture of a series, which the UI shows by its steps."""
    about = {"name": name, "path": str(path), "step": step, "time": time}
    return {"kind": "image", "key": key, **about}


def model(
    key: str,
    name: str,
    folder: Path,
    example: Path,
    values: Mapping[str, float],
    params: Mapping[str, str],
    model_tags: Mapping[str, str],
) -> Message:
    """The LoggedModel of a run: its folder, figures, recipe and tags."""
    return {
        "kind": "model",
        "key": key,
        "name": name,
        "folder": str(folder),
        "example": str(example),
        "metrics": dict(values),
        "params": _cut(params, LONGEST_PARAM),
        "tags": _cut(model_tags, LONGEST_TAG),
        "time": now(),
    }


def output(key: str, model_key: str) -> Message:
    """The LoggedModel of one run is an output of another one too, so that its page shows it."""
    return {"kind": "output", "key": key, "model_key": model_key}


def registered(
    key: str,
    name: str,
    alias: str | None,
    version_tags: Mapping[str, str],
    first_tags: Mapping[str, str],
) -> Message:
    """The run's LoggedModel becomes a version of the registered model, with that alias.

    first_tags: only of a version that is new, since others change them later.
    """
    return {
        "kind": "registered",
        "key": key,
        "name": name,
        "alias": alias,
        "tags": _cut(version_tags, LONGEST_TAG),
        "first_tags": dict(first_tags),
    }


def ended(key: str, status: str, at: int) -> Message:
    """A run is over."""
    return {"kind": "ended", "key": key, "status": status, "time": at}


def model_id_key(key: str) -> str:
    """Under which delivered ids name the LoggedModel of that run."""
    return f"{key}/model"


def version_key(key: str) -> str:
    """Under which delivered ids name the registered version of that run's model."""
    return f"{key}/version"


class _Ids(dict[str, str]):
    """Ids by key, with an error of its own for what the server never made."""

    def __missing__(self, key: str) -> str:
        raise outbox.UnknownKeyError(f"{key}: the server did not make it")


class Delivery:
    """Does what messages say on the server, so that doing it twice is as doing it once."""

    def __init__(self, client: MlflowClient, experiment_id: str) -> None:
        self._client = client
        self._experiment_id = experiment_id

    def __call__(self, message: Message, ids: Mapping[str, str], again: bool) -> dict[str, str]:
        """Deliver one message; the ids that the server gave."""
        handle = getattr(self, f"_{message['kind']}")
        learnt: dict[str, str] = handle(message, _Ids(ids), again)
        return learnt

    def _run(self, message: Message, ids: Mapping[str, str], again: bool) -> dict[str, str]:
        key = message["key"]
        mark = f"{ids[outbox.OUTBOX]}/{key}"
        if again:
            made = self._client.search_runs([self._experiment_id], f"tags.`{KEY}` = '{mark}'")
            if made:
                return {key: made[0].info.run_id}
        run = self._client.create_run(
            self._experiment_id,
            start_time=message["time"],
            tags={**message["tags"], MLFLOW_PARENT_RUN_ID: ids[PARENT], KEY: mark},
            run_name=message["name"],
        )
        return {key: run.info.run_id}

    def _parameters(self, message: Message, ids: Mapping[str, str], again: bool) -> dict[str, str]:
        values = [Param(k, v) for k, v in message["values"].items()]
        self._client.log_batch(ids[message["key"]], params=values)
        return {}

    def _metrics(self, message: Message, ids: Mapping[str, str], again: bool) -> dict[str, str]:
        # The same key, value, timestamp and step again is no second point.
        values = [
            Metric(k, v, message["time"], message["step"]) for k, v in message["values"].items()
        ]
        self._client.log_batch(ids[message["key"]], metrics=values)
        return {}

    def _tags(self, message: Message, ids: Mapping[str, str], again: bool) -> dict[str, str]:
        values = [RunTag(k, v) for k, v in message["values"].items()]
        self._client.log_batch(ids[message["key"]], tags=values)
        return {}

    def _files(self, message: Message, ids: Mapping[str, str], again: bool) -> dict[str, str]:
        with tempfile.TemporaryDirectory() as folder:
            for artifact_path, source in message["paths"].items():
                target = Path(folder) / artifact_path
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
            self._client.log_artifacts(ids[message["key"]], folder)
        return {}

    def _dataset(self, message: Message, ids: Mapping[str, str], again: bool) -> dict[str, str]:
        data = Dataset(**message["dataset"])
        context = [InputTag(MLFLOW_DATASET_CONTEXT, message["context"])]
        self._client.log_inputs(ids[message["key"]], [DatasetInput(data, context)])
        return {}

    def _image(self, message: Message, ids: Mapping[str, str], again: bool) -> dict[str, str]:
        run_id = ids[message["key"]]
        # MLflow names each file anew.
        start = f"images/{message['name']}+step+{message['step']}+timestamp+{message['time']}+"
        if again and any(
            file.path.startswith(start) for file in self._client.list_artifacts(run_id, "images")
        ):
            return {}
        with Image.open(message["path"]) as picture:
            self._client.log_image(
                run_id,
                picture.convert("RGB"),
                key=message["name"],
                step=message["step"],
                timestamp=message["time"],
                synchronous=True,
            )
        return {}

    def _model(self, message: Message, ids: Mapping[str, str], again: bool) -> dict[str, str]:
        run_id = ids[message["key"]]
        logged = self._unfinished_model(run_id) if again else None
        if logged is None:
            logged = self._client.create_logged_model(
                self._experiment_id,
                # What MLflow allows as the name of a logged model.
                name=re.sub(r"[/:.%\"']", "-", message["name"]),
                source_run_id=run_id,
                tags=message["tags"],
                params=message["params"],
                model_type=TASKS[message["tags"]["sft.task"]].model_type,
            )
        model_id = str(logged.model_id)
        self._log_output(run_id, model_id)
        described = Model(
            artifact_path=logged.artifact_location,
            model_uuid=model_id,
            run_id=run_id,
            model_id=model_id,
        )
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "model"
            example = packaging.example_image(Path(message["example"]))
            packaging.package(Path(message["folder"]), example, described, target)
            self._client.log_model_artifacts(model_id, str(target))
        figures = [
            Metric(k, v, message["time"], 0, model_id=model_id)
            for k, v in message["metrics"].items()
        ]
        self._client.log_batch(run_id, metrics=figures)
        self._client.finalize_logged_model(model_id, LoggedModelStatus.READY)
        return {model_id_key(message["key"]): model_id}

    def _output(self, message: Message, ids: Mapping[str, str], again: bool) -> dict[str, str]:
        model_id = ids[model_id_key(message["model_key"])]
        self._log_output(ids[message["key"]], model_id)
        return {}

    def _log_output(self, run_id: str, model_id: str) -> None:
        # The SQL store refuses an output that a run already has.
        outputs = self._client.get_run(run_id).outputs
        known = outputs.model_outputs if outputs else []
        if model_id not in {output.model_id for output in known}:
            self._client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])

    def _unfinished_model(self, run_id: str) -> Any:
        made = self._client.search_logged_models(
            [self._experiment_id], filter_string=f"source_run_id = '{run_id}'"
        )
        return made[0] if made else None

    def _registered(self, message: Message, ids: Mapping[str, str], again: bool) -> dict[str, str]:
        name, model_id = message["name"], ids[model_id_key(message["key"])]
        # Asked first: a registration that fails half-way leaves an empty registered model.
        if not self._client.search_registered_models(f"name = '{name}'"):
            self._client.create_registered_model(name)
        versions = self._client.search_model_versions(f"name = '{name}'")
        known = [v for v in versions if model_id_of(v) == model_id]
        # Readings of the test data are counted on from there, by promotions.
        version = known[0] if known else self._new_version(message, ids, model_id)
        number = str(version.version)
        for tag, value in message["tags"].items():
            self._client.set_model_version_tag(name, number, tag, value)
        if message["alias"]:
            self._client.set_registered_model_alias(name, message["alias"], number)
        return {version_key(message["key"]): number}

    def _new_version(self, message: Message, ids: Mapping[str, str], model_id: str) -> Any:
        return self._client.create_model_version(
            message["name"],
            source=f"models:/{model_id}",
            run_id=ids[message["key"]],
            model_id=model_id,
            tags={**message["tags"], **message["first_tags"]},
        )

    def _ended(self, message: Message, ids: Mapping[str, str], again: bool) -> dict[str, str]:
        self._client.set_terminated(ids[message["key"]], message["status"], message["time"])
        return {}


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
        # Found by their tag: the last one may have been made and not been noted. What a user has
        # deleted is not among them.
        query = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{earlier}'"
        experiment = client.get_run(earlier).info.experiment_id
        for child in _all_runs(client, experiment, query):
            client.set_tag(child.info.run_id, MLFLOW_PARENT_RUN_ID, parent.run_id)
            _end_if_running(client, child.info.run_id, "FAILED")
        before = client.get_run(earlier).info
        if before.lifecycle_stage == "active":
            client.set_tag(earlier, MLFLOW_RUN_NAME, f"{before.run_name} (continued)")
            client.set_tag(earlier, "sft.continued_by", parent.run_id)
            _end_if_running(client, earlier, "KILLED")
    except MlflowException as error:
        raise TrackingError(
            f"{client.tracking_uri}: the runs of the interrupted study cannot be taken over "
            f"({str(error).splitlines()[0]}). Is it the server that the study was begun on?"
        ) from error


def _all_runs(client: MlflowClient, experiment_id: str, query: str) -> list[Any]:
    """Every run that the query finds; the server gives them page by page."""
    found: list[Any] = []
    token = None
    while True:
        page = client.search_runs([experiment_id], query, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _end_if_running(client: MlflowClient, run_id: str, status: str) -> None:
    if client.get_run(run_id).info.status == "RUNNING":
        client.set_terminated(run_id, status)


def _cut(values: Mapping[str, str], longest: int) -> dict[str, str]:
    return {k: v if len(v) <= longest else f"{v[: longest - 1]}…" for k, v in values.items()}
