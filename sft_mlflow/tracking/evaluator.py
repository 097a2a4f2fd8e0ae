"""The evaluator behind `mlflow.models.evaluate(..., model_type="image-classification")`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from mlflow.data.evaluation_dataset import EvaluationDataset
from mlflow.models.evaluation import EvaluationResult, ModelEvaluator
from numpy.typing import NDArray

from sft_mlflow.errors import DataError
from sft_mlflow.tasks.classification import CLASSIFICATION, metrics
from sft_mlflow.tasks.figures import Confusion
from sft_mlflow.tracking.evaluation import answers_to, log_artifacts, log_figures, refuse_extras


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
        return model_type == CLASSIFICATION.model_type

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
        refuse_extras(dataset, extra_metrics, custom_artifacts)
        truth = np.asarray([str(name) for name in dataset.labels_data])
        predicted = (
            _named([str(name) for name in dataset.predictions_data])
            if model is None
            else _predict(model, dataset.features_data)
        )
        figures, tables, confusion = _judge(truth, predicted)
        log_figures(figures, dataset, run_id, model_id)
        artifacts = log_artifacts(run_id, tables, confusion)
        # MLflow's classes for results have no annotations.
        return EvaluationResult(figures, artifacts, run_id)  # type: ignore[no-untyped-call]


def _predict(model: Any, frame: pd.DataFrame) -> _Predicted:
    answers = [_read(answer) for answer in answers_to(model, frame)]
    first = answers[0]
    probabilities = [a.probabilities for a in answers if a.probabilities is not None]
    return _Predicted(
        first.classes or tuple(sorted({str(n) for a in answers for n in a.predictions})),
        np.concatenate([a.predictions for a in answers]),
        np.concatenate(probabilities) if probabilities else None,
    )


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
) -> tuple[dict[str, float], dict[str, pd.DataFrame], Confusion]:
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
        "per_class": pd.DataFrame(
            [(row.name, *row.values, row.count) for row in rows],
            columns=["name", "precision", "recall", "f1", "support"],
        )
    }
    return figures, tables, Confusion(classes, counts, "images")
