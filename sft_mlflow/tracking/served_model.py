"""The registered model: images in, classes, boxes or masks out.

MLflow runs this file to load the model (models from code), so that nothing is unpickled.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from sft_mlflow.data.pixels import shown
from sft_mlflow.errors import DataError
from sft_mlflow.tasks.predictor import Predictor

# Name of the artifact that is the model folder.
ARTIFACT = "model"


class ServedModel(PythonModel):
    """A fine-tuned model behind MLflow's pyfunc interface."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model folder; its weights are verified against their SHA-256."""
        self._predictor = Predictor.load(Path(context.artifacts[ARTIFACT]))

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """One row an image, with the columns of the model's task (`served_columns`).

        model_input: a column `image` with the bytes of an image file in each row; params: what of
        the calibration is wanted otherwise, as `least_score` of boxes.
        """
        frame, answering = self._predictor.frame, self._predictor.task.answering
        wanted = {k: v for k, v in (params or {}).items() if k in answering.adjustable}
        frame = replace(frame, calibration=replace(frame.calibration, **wanted))
        pixels = np.empty((len(model_input), *frame.pixels.shape), np.uint8)
        sizes = []
        for position, image in enumerate(model_input["image"]):
            try:
                pixels[position], size = shown(bytes(image), frame.pixels)
                sizes.append(size)
            except DataError as error:
                raise MlflowException(
                    f"row {position}: {error}", error_code=INVALID_PARAMETER_VALUE
                ) from error
        answers = self._predictor.answers(pixels, sizes)
        columns = [name for name, _ in answering.served_columns()]
        return pd.DataFrame([answering.served(a, frame) for a in answers], columns=columns)


mlflow.models.set_model(ServedModel())
