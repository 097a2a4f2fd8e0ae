"""A fine-tuned model as two files: `config.json` and `weights.safetensors`.

Whatever made the folder (a study) and whatever reads it (the registered model, the scorer, a later
study that starts from it) agree here and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from sft_mlflow.data.truth import TaskName
from sft_mlflow.errors import DataError
from sft_mlflow.sources import weights
from sft_mlflow.sources.source_model import Architecture, Preprocessing
from sft_mlflow.whole_file import whole_file

CONFIG = "config.json"
WEIGHTS = "weights.safetensors"
FORMAT = 2


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was fitted to validation data so that answers mean what they say.

    temperature: divides the logits of classes, so that probabilities are right as often as they
    say; least_score: of a box that is reported.
    """

    temperature: float = 1.0
    least_score: float = 0.0


@dataclass(frozen=True)
class ModelConfig:
    """Everything but the weights that a fine-tuned model needs to answer.

    preprocessing: with the size that it was fine-tuned at; source: URI of what it was fine-tuned
    from.
    """

    task: TaskName
    architecture: Architecture
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    calibration: Calibration
    source: str
    weights_sha256: str


def write(folder: Path, config: ModelConfig, state_dict: Mapping[str, Tensor]) -> None:
    """Write both files; the config comes last, so that a folder that has it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    weights.write_state_dict(state_dict, folder / WEIGHTS)
    with whole_file(folder / CONFIG) as beside:
        beside.write_text(json.dumps({"format": FORMAT, **asdict(config)}, indent=2))


def is_model_folder(folder: Path) -> bool:
    """Whether a whole model is there."""
    return (folder / CONFIG).is_file()


def read_config(folder: Path) -> ModelConfig:
    """The config of the folder; raises DataError where it is missing or of another format."""
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text())
        found = values.pop("format")
        if found == 1:
            # Until boxes came, the temperature stood by itself.
            values["calibration"] = {"temperature": values.pop("temperature")}
        elif found != FORMAT:
            raise DataError(f"{path}: written by another version of sft_mlflow; update it.")
        return ModelConfig(
            **{
                **values,
                "architecture": Architecture(**values["architecture"]),
                "preprocessing": Preprocessing.from_dict(values["preprocessing"]),
                "classes": tuple(values["classes"]),
                "calibration": Calibration(**values["calibration"]),
            }
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: no config of a model that sft_mlflow made ({error}).") from error


def read_weights(folder: Path, config: ModelConfig) -> dict[str, Tensor]:
    """The weights, verified against the SHA-256 in the config; raises DataError if they differ."""
    state_dict = weights.read_state_dict(folder / WEIGHTS)
    found = weights.digest(state_dict)
    if found != config.weights_sha256:
        raise DataError(
            f"{folder / WEIGHTS}: SHA-256 of the weights is {found}, but the config says "
            f"{config.weights_sha256}. The file was changed or damaged; fetch the model again."
        )
    return state_dict
