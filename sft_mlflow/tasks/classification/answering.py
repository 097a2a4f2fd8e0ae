"""How classes and their probabilities reach people and programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor, nn

from sft_mlflow.tasks.base import Frame
from sft_mlflow.tasks.classification import calibration
from sft_mlflow.tasks.exports import Export


def probability_column(name: str) -> str:
    """The column of scores that has the probability of that class."""
    return f"probability_{name}"


class ClassAnswering:
    """An answer are the logits of an image, divided by the frame's temperature."""

    adjustable = ()
    exports: Mapping[str, Export] = MappingProxyType({})

    def answers(
        self, head: nn.Module, outputs: Tensor, sizes: Sequence[tuple[int, int]], frame: Frame
    ) -> list[NDArray[np.floating]]:
        """Logits (classes,) of each image."""
        del head
        logits = outputs[: len(sizes)].float().cpu().numpy()
        temperature = frame.calibration.temperature
        if temperature != 1:
            logits = logits.astype(np.float64) / temperature
        return list(logits)

    def mirrored(self, answer: NDArray[np.floating], width: int) -> NDArray[np.floating]:
        """A class has no left and right."""
        del width
        return answer

    def columns(self, classes: Sequence[str]) -> list[tuple[str, pa.DataType]]:
        """`label`, the true class where it is known, `prediction`, and the probability of each.

        A column each, because pandas, Spark and SQL filter and aggregate those without unpacking.
        """
        probabilities = [(probability_column(name), pa.float64()) for name in classes]
        return [("label", pa.string()), ("prediction", pa.string()), *probabilities]

    def rows(
        self,
        answers: Sequence[NDArray[np.floating] | None],
        labels: Sequence[str | None],
        sizes: Sequence[tuple[int, int] | None],
        frame: Frame,
    ) -> tuple[NDArray[np.intp], list[pa.Array]]:
        """One row an image."""
        readable = np.array([answer is not None for answer in answers], bool)
        found = np.zeros((len(answers), len(frame.classes)))
        if readable.any():
            logits = np.stack([answer for answer in answers if answer is not None])
            found[readable] = calibration.softmax(logits)
        best = found.argmax(axis=1)
        said = [frame.classes[i] if ok else None for i, ok in zip(best, readable, strict=True)]
        return np.arange(len(answers)), [
            pa.array(labels, pa.string()),
            pa.array(said, pa.string()),
            *(pa.array(column, pa.float64(), mask=~readable) for column in found.T),
        ]

    def served_columns(self) -> list[tuple[str, pa.DataType]]:
        """`prediction`, its `probability`, and the `probabilities` of all classes by name."""
        return [
            ("prediction", pa.string()),
            ("probability", pa.float64()),
            ("probabilities", pa.map_(pa.string(), pa.float64())),
        ]

    def served(self, answer: NDArray[np.floating], frame: Frame) -> dict[str, object]:
        """One row of them."""
        row = calibration.softmax(answer[None])[0]
        return {
            "prediction": frame.classes[int(row.argmax())],
            "probability": float(row.max()),
            "probabilities": dict(zip(frame.classes, map(float, row), strict=True)),
        }
