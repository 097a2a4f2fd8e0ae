"""The tracking server that this process talks to."""

from __future__ import annotations

from mlflow import MlflowClient, get_tracking_uri


def connect() -> MlflowClient:
    """A client of the server that MLFLOW_TRACKING_URI or MLflow's default names."""
    return MlflowClient(tracking_uri=get_tracking_uri())


def page_of_run(client: MlflowClient, experiment_id: str, run_id: str) -> str:
    """Where a person sees the run: its address, or the command that shows it."""
    path = f"/#/experiments/{experiment_id}/runs/{run_id}"
    if client.tracking_uri.startswith("http"):
        return f"{client.tracking_uri.rstrip('/')}{path}"
    return f"mlflow server --backend-store-uri {client.tracking_uri}"
