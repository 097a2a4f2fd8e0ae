"""The tracking server that this process talks to."""

from __future__ import annotations

import shlex

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from sft_mlflow.errors import TrackingError


def connect() -> MlflowClient:
    """A client of the server that MLFLOW_TRACKING_URI or MLflow's default names.

    Raises TrackingError where it does not answer.
    """
    uri = mlflow.get_tracking_uri()
    # The SQL registry looks up the source of a new version at the process's address, not at the
    # client's: said once, so that they are the same even if the environment changes.
    mlflow.set_tracking_uri(uri)
    try:
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    except MlflowException as error:
        raise TrackingError(
            f"{uri}: does not answer ({str(error).splitlines()[0]}). "
            f"Check MLFLOW_TRACKING_URI and that its server runs."
        ) from error
    return client


def page_of_run(client: MlflowClient, experiment_id: str, run_id: str) -> str:
    """Where a person sees the run: its address, after the command that makes it one."""
    path = f"/#/experiments/{experiment_id}/runs/{run_id}"
    if client.tracking_uri.startswith("http"):
        return f"{client.tracking_uri.rstrip('/')}{path}"
    store = shlex.quote(client.tracking_uri)
    serve = f"mlflow server --port 5000 --backend-store-uri {store}"
    return f"{serve}  # then open http://127.0.0.1:5000{path}"
