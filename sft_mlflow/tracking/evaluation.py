"""What evaluators share: images from a frame to a model, and figures to a run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.data.evaluation_dataset import EvaluationDataset
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.models.evaluation.artifacts import CsvEvaluationArtifact, ImageEvaluationArtifact

from sft_mlflow.data.images import BrokenImageError, decode, read_bytes
from sft_mlflow.errors import DataError
from sft_mlflow.tasks.figures import Confusion
from sft_mlflow.tracking.outbox import now

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Encoded images that are held at once.
_ROWS = 256
# With more classes the cells of a drawn matrix can no longer be told apart.
_DRAWN_CLASSES = 60

_IMAGE_COLUMNS = ("image", "path")


def refuse_extras(dataset: EvaluationDataset, extra_metrics: Any, custom_artifacts: Any) -> None:
    """Raises DataError for what these evaluators do not do, or without targets or images."""
    if extra_metrics or custom_artifacts:
        raise DataError(
            "extra_metrics and custom_artifacts are not computed by this evaluator. Leave "
            "them out, and make them from the model's predictions."
        )
    if not dataset.has_targets:
        raise DataError("No targets. Name the column of what is true: targets='label'.")
    if len(dataset.labels_data) == 0:
        raise DataError("The data set is empty. Give at least one image.")


def answers_to(
    model: Any, frame: pd.DataFrame, params: dict[str, Any] | None = None
) -> Iterator[Any]:
    """The model's answers to the images of the frame, some rows at a time.

    Raises DataError where there is no column of images, or one gives no pixels.
    """
    column = _image_column(frame)
    for start in range(0, len(frame), _ROWS):
        given = list(frame[column].iloc[start : start + _ROWS])
        images = [_encoded(value) for value in given]
        try:
            yield model.predict(pd.DataFrame({"image": images}), params=params)
        except MlflowException as error:
            # The model knows rows; a person knows files.
            broken = _first_broken(given, images, start)
            if broken is None:
                raise
            raise DataError(
                f"{broken}. Leave it out of the data set; `sft-mlflow check` lists all such files."
            ) from error


def log_figures(
    figures: Mapping[str, float], dataset: EvaluationDataset, run_id: str, model_id: str | None
) -> None:
    """Log the figures to run and model, with the data set that they are of."""
    at = now()
    logged = [
        Metric(
            key=name,
            value=value,
            timestamp=at,
            step=0,
            model_id=model_id,
            dataset_name=dataset.name,
            dataset_digest=dataset.digest or dataset.hash,
            run_id=run_id,
        )
        for name, value in figures.items()
    ]
    MlflowClient().log_batch(run_id, metrics=logged)


def log_artifacts(
    run_id: str, tables: Mapping[str, pd.DataFrame], confusion: Confusion
) -> dict[str, CsvEvaluationArtifact | ImageEvaluationArtifact]:
    """Log the tables and the confusion matrix below `evaluation`, it as a picture as well."""
    names = confusion.names
    matrix = pd.DataFrame(confusion.counts, index=pd.Index(names, name="true"), columns=list(names))
    # A class may have that name too.
    tables = {**tables, "confusion_matrix": matrix.reset_index(allow_duplicates=True)}
    drawing = _draw(confusion) if len(names) <= _DRAWN_CLASSES else None
    client = MlflowClient()
    root = client.get_run(run_id).info.artifact_uri
    artifacts: dict[str, CsvEvaluationArtifact | ImageEvaluationArtifact] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, table in tables.items():
            table.to_csv(Path(folder, f"{name}.csv"), index=False)
            uri = f"{root}/evaluation/{name}.csv"
            artifacts[name] = CsvEvaluationArtifact(uri, table)  # type: ignore[no-untyped-call]
        if drawing is not None:
            picture = Path(folder, "confusion_matrix.png")
            drawing.savefig(picture)
            uri = f"{root}/evaluation/{picture.name}"
            artifact = ImageEvaluationArtifact(uri)  # type: ignore[no-untyped-call]
            artifact._load(picture)  # type: ignore[no-untyped-call]
            artifacts["confusion_matrix_picture"] = artifact
        client.log_artifacts(run_id, folder, "evaluation")
    return artifacts


def _draw(confusion: Confusion) -> Figure:
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay

    side = max(4.0, 0.45 * len(confusion.names) + 2)
    figure = Figure(figsize=(side, side), layout="constrained")
    display = ConfusionMatrixDisplay(confusion.counts, display_labels=list(confusion.names))
    display.plot(ax=figure.subplots(), cmap="Blues", colorbar=False, xticks_rotation="vertical")
    return figure


def _first_broken(given: Sequence[object], images: Sequence[bytes], start: int) -> str | None:
    """Which of the images gives no pixels and why, or None. start: row of the first."""
    for row, (value, image) in enumerate(zip(given, images, strict=True), start):
        try:
            decode(image)
        except BrokenImageError as error:
            return f"{value if isinstance(value, str) else f'row {row}'}: {error.reason}"
    return None


def _image_column(frame: pd.DataFrame) -> str:
    names = [str(name) for name in frame.columns]
    found = [name for name in _IMAGE_COLUMNS if name in names]
    if found:
        return found[0]
    if len(names) == 1:
        return names[0]
    raise DataError(
        f"No column of images among {', '.join(map(repr, names))}. Name it 'image' for encoded "
        "bytes or 'path' for files."
    )


def _encoded(value: object) -> bytes:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    return read_bytes(Path(os.path.expanduser(str(value))))
