"""Versions of a registered model: a model of the tracking server is one of them once."""

from __future__ import annotations

from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from sft_mlflow.tracking.fetch import model_id_of


def version_of(
    client: MlflowClient,
    name: str,
    model_id: str | None,
    *,
    source: str,
    run_id: str | None,
    tags: Mapping[str, str],
) -> ModelVersion:
    """The version of the registered model that is this LoggedModel, made if there is none yet.

    source, run_id, tags: only of a version that is new. Raises MlflowException.
    """
    # Asked first: a registration that fails half-way leaves an empty registered model.
    if client.search_registered_models(f"name = '{name}'"):
        for known in client.search_model_versions(f"name = '{name}'"):
            if model_id is not None and model_id_of(known) == model_id:
                return known
    else:
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            # Another process registers its own for the first time.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    return client.create_model_version(
        name, source=source, run_id=run_id, model_id=model_id, tags=dict(tags)
    )
