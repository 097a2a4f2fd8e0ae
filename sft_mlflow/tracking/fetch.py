"""From `models:/`, `runs:/` or a registered name to a model folder on this machine."""

from __future__ import annotations

import difflib
import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModel, Run
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from sft_mlflow.data.readers.materialised import materialise
from sft_mlflow.errors import OptionsError, TrackingError, first_line
from sft_mlflow.sources import model_folder

ARTIFACT = "artifacts/model"
BEST_MODEL = "sft.best_model_id"
CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"

_MODEL_ID = re.compile(r"m-[0-9a-f]{32}")
_LOGGED = re.compile(rf"models:/+({_MODEL_ID.pattern})/?")
_VERSION = re.compile(r"models:/+([^/@]+)/(\d+)/?")
_ALIAS = re.compile(r"models:/+([^/@]+)@([^/@]+)/?")
_BARE = re.compile(r"models:/+([^/@]+)/?")
_LATEST = re.compile(r"models:/+([^/@]+)/latest/?")
_RUN = re.compile(r"runs:/+([^/]+)(?:/(.+?))?/?")


@dataclass(frozen=True)
class ModelReference:
    """A model that the tracking server knows, not yet on this machine.

    uri: the most exact one, with the version or the LoggedModel's id; location: of its artifacts;
    model_id: of the LoggedModel, None for a version that was registered without one; name and
    version: of the registered model, None for a LoggedModel; tags: of the version or LoggedModel.
    """

    uri: str
    location: str
    model_id: str | None
    name: str | None
    version: str | None
    run_id: str | None
    tags: Mapping[str, str]

    @property
    def label(self) -> str:
        """`NAME/VERSION`, or the id of the LoggedModel."""
        return f"{self.name}/{self.version}" if self.name else (self.model_id or self.uri)


@dataclass(frozen=True)
class FetchedModel:
    """A model on this machine. folder: config.json, weights.safetensors and manifest.parquet."""

    folder: Path
    reference: ModelReference


def fetch(client: MlflowClient, uri: str, *, into: Path) -> FetchedModel:
    """The model behind the URI, as `resolve` reads it, downloaded into a folder of `into`.

    A model that was fetched before is not downloaded again: LoggedModels and versions never change.
    Raises OptionsError and TrackingError as `resolve` and `download` do.
    """
    reference = resolve(client, uri)
    return FetchedModel(download(client, reference, into=into), reference)


def resolve(client: MlflowClient, uri: str) -> ModelReference:
    """What the server knows of the model behind one of these; nothing is downloaded.

    - `models:/NAME@ALIAS`, `models:/NAME/VERSION`: a registered version;
    - `models:/NAME/latest`: its newest version;
    - `NAME`, `models:/NAME`: its champion; where there is none, its challenger; else its newest;
    - `models:/m-ID`: a LoggedModel;
    - `runs:/RUN[/NAME]`: the model that the run logged, under that name if it logged several; of a
      study's run, that of its best trial.

    Raises OptionsError for a URI of none of these forms and TrackingError, with the nearest names,
    where the server has no such model.
    """
    if match := _LOGGED.fullmatch(uri):
        return _of_logged_model(_logged_model(client, match[1]))
    if match := _VERSION.fullmatch(uri):
        return reference_of(client, _version(client, match[1], match[2]))
    if match := _ALIAS.fullmatch(uri):
        return reference_of(client, _aliased(client, match[1], match[2]))
    if match := _LATEST.fullmatch(uri):
        return reference_of(client, _newest(client, match[1]))
    if match := _RUN.fullmatch(uri):
        return _of_logged_model(_model_of_run(client, match[1], match[2]))
    if (match := _BARE.fullmatch(uri)) or not {"/", "@"} & set(uri):
        return reference_of(client, _preferred(client, match[1] if match else uri))
    raise OptionsError(
        f"model: {uri!r} is not understood. Give models:/NAME@ALIAS, models:/NAME/VERSION, "
        "models:/NAME/latest, models:/m-ID, runs:/RUN, or the name of a registered model."
    )


def reference_of(client: MlflowClient, version: ModelVersion) -> ModelReference:
    """The registered version as a reference."""
    number = str(version.version)
    return ModelReference(
        uri=f"models:/{version.name}/{number}",
        location=client.get_model_version_download_uri(version.name, number),
        model_id=model_id_of(version),
        name=version.name,
        version=number,
        run_id=version.run_id,
        tags=dict(version.tags),
    )


def model_id_of(version: ModelVersion) -> str | None:
    """Id of the LoggedModel that was registered as this version, None if it was made without."""
    # The SQL store drops the id that it is given at registration, but keeps the source.
    logged = _LOGGED.fullmatch(version.source or "")
    return version.model_id or (logged[1] if logged else None)


def download(client: MlflowClient, reference: ModelReference, *, into: Path) -> Path:
    """The model folder of the reference, below `into`; downloaded once, whole or not at all.

    Raises TrackingError where the model was not made by this product.
    """
    key = reference.model_id or hashlib.sha256(reference.location.encode()).hexdigest()[:32]

    def write(target: Path) -> None:
        source = f"{reference.location.rstrip('/')}/{ARTIFACT}"
        got = Path(
            download_artifacts(
                artifact_uri=source, dst_path=str(target), tracking_uri=client.tracking_uri
            )
        )
        model_folder.read_config(got)
        for entry in list(got.iterdir()):
            shutil.move(entry, target / entry.name)
        got.rmdir()

    try:
        return materialise(into / key, write)
    except MlflowException as error:
        raise TrackingError(
            f"{reference.uri}: holds no {ARTIFACT}, so it was not made by sft_mlflow, or its "
            f"artifacts are out of reach ({first_line(error)}). Give a model that `finetune` made."
        ) from error


def registered_model(client: MlflowClient, name: str) -> RegisteredModel:
    """The registered model. Raises TrackingError, with the nearest names, if there is none."""
    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if not exists_not(error):
            raise TrackingError(f"models:/{name}: {first_line(error)}") from error
        names = registered_names(client)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"Nearest: {', '.join(near)}." if near else _listing("Registered", names)
        raise TrackingError(
            f"model: no registered model {name!r} on {client.tracking_uri}. {hint}"
        ) from error


def registered_names(client: MlflowClient) -> list[str]:
    """Names of all registered models that hold versions."""
    names: list[str] = []
    token: str | None = None
    while True:
        page = client.search_registered_models(page_token=token)
        names += [model.name for model in page if model.latest_versions]
        token = page.token
        if not token:
            return names


def exists_not(error: MlflowException) -> bool:
    """Whether the server says that there is no such thing, and not that something else is wrong."""
    # A missing alias is an INVALID_PARAMETER_VALUE in the SQL store.
    return error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def version_at(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version that the alias names, None where the alias or the model does not exist."""
    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if exists_not(error):
            return None
        raise TrackingError(f"models:/{name}@{alias}: {first_line(error)}") from error


def _of_logged_model(model: LoggedModel) -> ModelReference:
    return ModelReference(
        uri=f"models:/{model.model_id}",
        location=model.artifact_location,
        model_id=model.model_id,
        name=None,
        version=None,
        run_id=model.source_run_id,
        tags=dict(model.tags),
    )


def _logged_model(client: MlflowClient, model_id: str) -> LoggedModel:
    try:
        return client.get_logged_model(model_id)
    except MlflowException as error:
        raise TrackingError(
            f"models:/{model_id}: no such LoggedModel on {client.tracking_uri} "
            f"({first_line(error)}). The page of the run that made it shows its id."
        ) from error


def _version(client: MlflowClient, name: str, number: str) -> ModelVersion:
    registered_model(client, name)
    try:
        return client.get_model_version(name, number)
    except MlflowException as error:
        if not exists_not(error):
            raise TrackingError(f"models:/{name}/{number}: {first_line(error)}") from error
        found = sorted(int(v.version) for v in client.search_model_versions(f"name='{name}'"))
        raise TrackingError(
            f"model: {name!r} has no version {number}. "
            f"{_listing('Its versions', [str(number) for number in found])}"
        ) from error


def _aliased(client: MlflowClient, name: str, alias: str) -> ModelVersion:
    model = registered_model(client, name)
    version = version_at(client, name, alias)
    if version is not None:
        return version
    near = difflib.get_close_matches(alias, model.aliases, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else _listing("Its aliases", list(model.aliases))
    promote = " `promote` makes a champion." if alias == CHAMPION and not near else ""
    raise TrackingError(f"model: {name!r} has no alias {alias!r}. {hint}{promote}")


def _preferred(client: MlflowClient, name: str) -> ModelVersion:
    aliases = registered_model(client, name).aliases
    for alias in (CHAMPION, CHALLENGER):
        if alias in aliases:
            return client.get_model_version(name, str(aliases[alias]))
    return _newest(client, name)


def _newest(client: MlflowClient, name: str) -> ModelVersion:
    registered_model(client, name)
    versions = list(client.search_model_versions(f"name='{name}'"))
    if not versions:
        raise TrackingError(f"model: {name!r} has no version yet. `finetune` registers one.")
    return max(versions, key=lambda version: int(version.version))


def _model_of_run(client: MlflowClient, run_id: str, name: str | None) -> LoggedModel:
    try:
        run: Run = client.get_run(run_id)
    except MlflowException as error:
        raise TrackingError(
            f"runs:/{run_id}: no such run on {client.tracking_uri} ({first_line(error)})."
        ) from error
    best = run.data.tags.get(BEST_MODEL)
    if best is not None and name is None:
        return _logged_model(client, best)
    logged = list(
        client.search_logged_models(
            [run.info.experiment_id], filter_string=f"source_run_id = '{run_id}'"
        )
    )
    named = [model for model in logged if name in (None, model.name)]
    if len(named) == 1:
        return named[0]
    names = sorted({str(model.name) for model in logged})
    if not named and name is not None:
        listing = _listing("Its models", names)
        raise TrackingError(f"runs:/{run_id}/{name}: the run logged no model {name!r}. {listing}")
    if not named:
        raise TrackingError(
            f"runs:/{run_id}: the run logged no model. A trial that was pruned or failed has "
            "none; give the study's run, or another trial's."
        )
    ids = [f"models:/{model.model_id}" for model in named]
    raise TrackingError(f"runs:/{run_id}: the run logged several models. {_listing('Give', ids)}")


def _listing(what: str, names: list[str]) -> str:
    shown = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    return f"{what}: {shown or 'none'}."
