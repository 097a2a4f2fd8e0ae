"""The tracking server that this process talks to."""

from __future__ import annotations

import hashlib
import os
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from sft_mlflow.errors import TrackingError, first_line

# How often MLflow's client tries a request again.
_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_FILE = "sqlite:///"


def connect() -> MlflowClient:
    """A client of the server that MLFLOW_TRACKING_URI or MLflow's default names.

    Raises TrackingError where it does not answer, or a database file is half made.
    """
    uri = mlflow.get_tracking_uri()
    # The SQL registry looks up the source of a new version at the process's address, not at the
    # client's: said once, so that they are the same even if the environment changes.
    mlflow.set_tracking_uri(uri)
    try:
        with _alone(uri), _soon():
            client = MlflowClient(tracking_uri=uri)
            client.search_experiments(max_results=1)
    except MlflowException as error:
        raise TrackingError(
            f"{uri}: does not answer ({first_line(error)}). "
            f"Check MLFLOW_TRACKING_URI and that its server runs."
        ) from error
    except SQLAlchemyError as error:
        raise TrackingError(
            f"{uri}: no database that MLflow can use ({first_line(error)}). If a process "
            "ended while it made it, delete the file; else check MLFLOW_TRACKING_URI."
        ) from error
    return client


def leave_waiting_to_the_outbox() -> None:
    """Have MLflow's client give up soon: the outbox tries again, and holds up nobody."""
    os.environ.setdefault(_RETRIES, "1")


@contextmanager
def _soon() -> Iterator[None]:
    """In it MLflow's client gives up soon, and not after minutes, unless the user said when."""
    given = os.environ.get(_RETRIES)
    leave_waiting_to_the_outbox()
    try:
        yield
    finally:
        if given is None:
            del os.environ[_RETRIES]


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """In it no other process of this machine makes the tables of a database file.

    Who uses a file first makes them, and two at once leave a file that neither can use.
    """
    if not uri.startswith(_FILE):
        yield
        return
    path = os.path.abspath(uri.removeprefix(_FILE))
    name = hashlib.sha256(path.encode()).hexdigest()[:16]
    with FileLock(Path(tempfile.gettempdir()) / f"sft_mlflow-{os.getuid()}-{name}.lock"):
        yield


def page_of_run(client: MlflowClient, experiment_id: str, run_id: str) -> str:
    """Where a person sees the run: its address, after the command that makes it one."""
    path = f"/#/experiments/{experiment_id}/runs/{run_id}"
    if client.tracking_uri.startswith("http"):
        return f"{client.tracking_uri.rstrip('/')}{path}"
    store = shlex.quote(client.tracking_uri)
    serve = f"mlflow server --port 5000 --backend-store-uri {store}"
    return f"{serve}  # then open http://127.0.0.1:5000{path}"
