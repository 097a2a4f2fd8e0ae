"""The registered model: images in, class and probabilities out.

MLflow runs this file to load the model (models from code), so that nothing is unpickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from sft_mlflow.data.pixels import pixels_of
from sft_mlflow.errors import DataError
from sft_mlflow.tasks.classification.predictor import Predictor

# Name of the artifact that is the model folder.
ARTIFACT = "model"


class ServedClassifier(PythonModel):
    """A fine-tuned classifier behind MLflow's pyfunc interface."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model folder; its weights are verified against their SHA-256."""
        self._predictor = Predictor.load(Path(context.artifacts[ARTIFACT]))

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """`prediction`, its `probability`, and the `probabilities` of all classes by name.

        model_input: a column `image` with the bytes of an image file in each row.
        """
        config = self._predictor.config
        spec = config.preprocessing.pixels
        pixels = np.empty((len(model_input), *spec.shape), np.uint8)
        for position, image in enumerate(model_input["image"]):
            try:
                pixels[position] = pixels_of(bytes(image), spec)
            except DataError as error:
                raise MlflowException(
                    f"row {position}: {error}", error_code=INVALID_PARAMETER_VALUE
                ) from error
        rows = [
            {
                "prediction": config.classes[int(row.argmax())],
                "probability": float(row.max()),
                "probabilities": dict(zip(config.classes, map(float, row), strict=True)),
            }
            for row in self._predictor.probabilities(pixels)
        ]
        return pd.DataFrame(rows, columns=["prediction", "probability", "probabilities"])


mlflow.models.set_model(ServedClassifier())
