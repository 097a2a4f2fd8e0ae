"""What is said to MLflow through the outbox, and what each message does on the server.

Runs are always named by their ids: under `mlflow run` the active run of this process would be the
launcher's.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    RunTag,
)
from mlflow.models import Model
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID
from PIL import Image

from sft_mlflow.tasks import TASKS
from sft_mlflow.tracking import outbox, packaging
from sft_mlflow.tracking.datasets import ImageDataset
from sft_mlflow.tracking.outbox import Message, now
from sft_mlflow.tracking.versions import version_of

PARENT = "parent"
# MLflow shows this tag as the description of a run, as Markdown.
DESCRIPTION = "mlflow.note.content"
KEY = "sft.key"
# MLflow's own limit on one value of a parameter, and what servers of every age take of a tag.
LONGEST_PARAM, LONGEST_TAG = 6000, 5000


def shortened(values: Mapping[str, str], longest: int) -> dict[str, str]:
    """The values, of at most so many characters each."""
    return {k: v if len(v) <= longest else f"{v[: longest - 1]}…" for k, v in values.items()}


def created(key: str, name: str, tags: Mapping[str, str], started: int) -> Message:
    """A child run begins. key: what later messages call it."""
    return {"kind": "run", "key": key, "name": name, "tags": dict(tags), "time": started}


def parameters(key: str, values: Mapping[str, str]) -> Message:
    """Parameters of a run; long values are cut, as MLflow would refuse them."""
    return {"kind": "parameters", "key": key, "values": shortened(values, LONGEST_PARAM)}


def metrics(key: str, values: Mapping[str, float], step: int, timestamp: int) -> Message:
    """Metrics of a run at a step."""
    return {"kind": "metrics", "key": key, "values": dict(values), "step": step, "time": timestamp}


def tags(key: str, values: Mapping[str, str]) -> Message:
    """Tags of a run."""
    return {"kind": "tags", "key": key, "values": shortened(values, LONGEST_TAG)}


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
    """The LoggedModel of a run: its folder, figures, recipe and tags.

    example: file of an encoded image, to show in what form it takes its input.
    """
    return {
        "kind": "model",
        "key": key,
        "name": name,
        "folder": str(folder),
        "example": str(example),
        "metrics": dict(values),
        "params": shortened(params, LONGEST_PARAM),
        "tags": shortened(model_tags, LONGEST_TAG),
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
        "tags": shortened(version_tags, LONGEST_TAG),
        "first_tags": dict(first_tags),
    }


def ended(key: str, status: str, at: int) -> Message:
    """A run is over."""
    return {"kind": "ended", "key": key, "status": status, "time": at}


def left_open(queue: Sequence[Message]) -> list[str]:
    """Keys of the runs that will be made of these messages and not be ended by one."""
    over = {message["key"] for message in queue if message["kind"] == "ended"}
    return [m["key"] for m in queue if m["kind"] == "run" and m["key"] not in over]


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
            example = Path(message["example"]).read_bytes()
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
        version = version_of(
            self._client,
            name,
            model_id,
            source=f"models:/{model_id}",
            run_id=ids[message["key"]],
            # Readings of the test data are counted on from there, by promotions.
            tags={**message["tags"], **message["first_tags"]},
        )
        number = str(version.version)
        for tag, value in message["tags"].items():
            self._client.set_model_version_tag(name, number, tag, value)
        if message["alias"]:
            self._client.set_registered_model_alias(name, message["alias"], number)
        return {version_key(message["key"]): number}

    def _ended(self, message: Message, ids: Mapping[str, str], again: bool) -> dict[str, str]:
        self._client.set_terminated(ids[message["key"]], message["status"], message["time"])
        return {}
