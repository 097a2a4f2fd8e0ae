"""The evaluator behind `mlflow.models.evaluate(..., model_type="image-classification")`."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.data.evaluation_dataset import EvaluationDataset
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.models.evaluation import EvaluationResult, ModelEvaluator
from mlflow.models.evaluation.artifacts import CsvEvaluationArtifact, ImageEvaluationArtifact
from numpy.typing import NDArray

from sft_mlflow.data.images import BrokenImageError, decode, read_bytes
from sft_mlflow.errors import DataError
from sft_mlflow.tasks.classification import metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODEL_TYPE = "image-classification"
# Encoded images that are held at once.
_ROWS = 256
# With more classes the cells of a drawn matrix can no longer be told apart.
_DRAWN_CLASSES = 60

_IMAGE_COLUMNS = ("image", "path")


@dataclass(frozen=True, eq=False)
class _Predicted:
    """probabilities: (images, classes), or None where the model gives classes alone."""

    classes: tuple[str, ...]
    predictions: NDArray[np.str_]
    probabilities: NDArray[np.float64] | None


class ImageClassificationEvaluator(ModelEvaluator):  # type: ignore[misc, unused-ignore]
    """Entry point `sft_image_classification` of `mlflow.model_evaluator`.

    The frame has one column of images, `image` (encoded bytes) or `path` (files), or a single
    column of either, and the targets are class names. Logs `accuracy`, `macro_f1` and, where the
    model gives probabilities, `ece`; tables of figures by class and of the confusion matrix as
    CSV, and a picture of it.
    """

    @classmethod
    def can_evaluate(
        cls, *, model_type: str, evaluator_config: Mapping[str, Any], **kwargs: Any
    ) -> bool:
        """Whether the model type is `image-classification`."""
        del evaluator_config, kwargs
        return model_type == MODEL_TYPE

    def evaluate(
        self,
        *,
        model_type: str,
        dataset: EvaluationDataset,
        run_id: str,
        evaluator_config: Mapping[str, Any],
        model: Any = None,
        extra_metrics: Any = None,
        custom_artifacts: Any = None,
        predictions: str | None = None,
        model_id: str | None = None,
        **kwargs: Any,
    ) -> EvaluationResult:
        """Figures and artifacts of the model on the data set, also logged to the run.

        Without a model, the data set's own column of predicted class names is judged.
        Raises DataError where images, targets or answers are not of the form above.
        """
        del model_type, evaluator_config, predictions, kwargs
        if extra_metrics or custom_artifacts:
            raise DataError(
                "extra_metrics and custom_artifacts are not computed by this evaluator. Leave "
                "them out, and make them from the model's predictions."
            )
        if not dataset.has_targets:
            raise DataError("No targets. Name the column of true classes: targets='label'.")
        truth = np.asarray([str(name) for name in dataset.labels_data])
        if len(truth) == 0:
            raise DataError("The data set is empty. Give at least one image.")
        predicted = (
            _named([str(name) for name in dataset.predictions_data])
            if model is None
            else _predict(model, dataset.features_data)
        )
        figures, tables, drawing = _judge(truth, predicted)
        _log_metrics(figures, dataset, run_id, model_id)
        artifacts = _log_artifacts(run_id, tables, drawing)
        # MLflow's classes for results have no annotations.
        return EvaluationResult(figures, artifacts, run_id)  # type: ignore[no-untyped-call]


def _predict(model: Any, frame: pd.DataFrame) -> _Predicted:
    column = _image_column(frame)
    answers = []
    for start in range(0, len(frame), _ROWS):
        given = list(frame[column].iloc[start : start + _ROWS])
        images = [_encoded(value) for value in given]
        try:
            answers.append(_read(model.predict(pd.DataFrame({"image": images}))))
        except MlflowException as error:
            # The model knows rows; a person knows files.
            broken = _first_broken(given, images, start)
            if broken is None:
                raise
            raise DataError(
                f"{broken}. Leave it out of the data set; `sft-mlflow check` lists all such files."
            ) from error
    first = answers[0]
    probabilities = [a.probabilities for a in answers if a.probabilities is not None]
    return _Predicted(
        first.classes or tuple(sorted({str(n) for a in answers for n in a.predictions})),
        np.concatenate([a.predictions for a in answers]),
        np.concatenate(probabilities) if probabilities else None,
    )


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


def _read(output: Any) -> _Predicted:
    """The model's answer: a frame as models of this product give it, or class names alone.

    `prediction` is the class; `probabilities`, if any, a mapping of class to probability a row.
    """
    if not isinstance(output, pd.DataFrame):
        return _named([str(name) for name in np.asarray(output).ravel()])
    if "probabilities" in output and isinstance(output["probabilities"].iloc[0], Mapping):
        classes = tuple(output["probabilities"].iloc[0])
        rows = np.array([[row[name] for name in classes] for row in output["probabilities"]])
        return _Predicted(classes, np.asarray(classes)[rows.argmax(axis=1)], rows)
    if "prediction" in output:
        return _named([str(name) for name in output["prediction"]])
    raise DataError(
        f"The model answers with the columns {', '.join(map(repr, output.columns))}; expected "
        "'prediction' and 'probabilities', as models that sft_mlflow made answer."
    )


def _named(predictions: Sequence[str]) -> _Predicted:
    return _Predicted((), np.asarray(predictions), None)


def _judge(
    truth: NDArray[np.str_], predicted: _Predicted
) -> tuple[dict[str, float], dict[str, pd.DataFrame], Figure | None]:
    # Classes that the model does not know stand last; it is never right about them.
    known = predicted.classes or tuple(sorted(set(predicted.predictions.tolist())))
    classes = (*known, *sorted(set(truth.tolist()) - set(known)))
    index = {name: number for number, name in enumerate(classes)}
    targets = np.array([index[name] for name in truth.tolist()], np.int64)
    probabilities = np.zeros((len(truth), len(classes)))
    if predicted.probabilities is None:
        places = [index[name] for name in predicted.predictions.tolist()]
        probabilities[np.arange(len(truth)), places] = 1.0
    else:
        probabilities[:, : len(known)] = predicted.probabilities
    figures = metrics.summary(probabilities, targets)
    if predicted.probabilities is None:
        # Certainty was only assumed, so it says nothing about calibration.
        figures.pop("ece")
    counts = metrics.confusion(probabilities, targets, classes)
    rows = metrics.per_class(probabilities, targets, classes)
    tables = {
        "per_class": pd.DataFrame([asdict(row) for row in rows]),
        "confusion_matrix": pd.DataFrame(
            counts, index=pd.Index(classes, name="true"), columns=list(classes)
        ).reset_index(),
    }
    return figures, tables, _draw(counts, classes) if len(classes) <= _DRAWN_CLASSES else None


def _draw(counts: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay

    side = max(4.0, 0.45 * len(classes) + 2)
    figure = Figure(figsize=(side, side), layout="constrained")
    display = ConfusionMatrixDisplay(counts, display_labels=list(classes))
    display.plot(ax=figure.subplots(), cmap="Blues", colorbar=False, xticks_rotation="vertical")
    return figure


def _log_metrics(
    figures: Mapping[str, float], dataset: EvaluationDataset, run_id: str, model_id: str | None
) -> None:
    now = int(time.time() * 1000)
    logged = [
        Metric(
            key=name,
            value=value,
            timestamp=now,
            step=0,
            model_id=model_id,
            dataset_name=dataset.name,
            dataset_digest=dataset.digest or dataset.hash,
            run_id=run_id,
        )
        for name, value in figures.items()
    ]
    MlflowClient().log_batch(run_id, metrics=logged)


def _log_artifacts(
    run_id: str, tables: Mapping[str, pd.DataFrame], drawing: Figure | None
) -> dict[str, CsvEvaluationArtifact | ImageEvaluationArtifact]:
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
