"""What every task answers to the layers above: how it builds, learns, judges and speaks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision import tv_tensors

from sft_mlflow.data.manifest import Manifest, Sample
from sft_mlflow.data.pixels import PixelSpec
from sft_mlflow.data.truth import MaskValues
from sft_mlflow.sources.model_folder import Calibration, ModelConfig
from sft_mlflow.sources.network import StagedNetwork
from sft_mlflow.sources.source_model import Architecture, Preprocessing, SourceModel
from sft_mlflow.tasks.exports import Export
from sft_mlflow.tasks.figures import Caption, Confusion, TestFigures

# What a head gives for a batch, what a loss is given as true, and what a model says of one image:
# each task has its own, and says which in its module.
Outputs = Any
Targets = Any
Answer = Any
# What is kept of the answers to some images beside their truth, enough for every metric; rows of
# several batches are put one below the other.
Evidence = NDArray[Any]
# Moves a mask or boxes as the image of that digest was moved.
Moved = Callable[[tv_tensors.TVTensor, str], tv_tensors.TVTensor]


@dataclass(frozen=True)
class Frame:
    """What answers are about.

    classes: the index of a class is its position; pixels: how a file becomes what the network is
    shown; mask_values: what the pixels of true masks stand for; calibration: of the answers.
    """

    classes: tuple[str, ...]
    pixels: PixelSpec
    mask_values: MaskValues | None = None
    calibration: Calibration = Calibration()  # noqa: RUF009 - frozen

    @classmethod
    def of_model(cls, config: ModelConfig, truth: Manifest | None = None) -> Frame:
        """That of a fine-tuned model. truth: what its answers are compared with, if anything."""
        values = None if truth is None else truth.mask_values
        return cls(config.classes, config.preprocessing.pixels, values, config.calibration)


@dataclass(frozen=True)
class LossSettings:
    """What of the recipe a loss reads.

    label_smoothing: share of the target that is spread over all classes, in [0, 1);
    class_weights: (classes,) float32 on the device, or None where all count the same.
    """

    label_smoothing: float
    class_weights: Tensor | None


class Building(Protocol):
    """How a source becomes a network."""

    def preprocessing(
        self, source: SourceModel, samples: Sequence[Sample], size: int | None
    ) -> Preprocessing:
        """How images like these are shown to it. size: in pixels, None for what suits."""

    def network(self, source: SourceModel, classes: int) -> StagedNetwork:
        """The source's network with a new head, drawn from torch's global generator."""

    def bare_network(self, architecture: Architecture, classes: int) -> StagedNetwork:
        """The same network, its weights still to be loaded."""


class Learning(Protocol):
    """How a network comes to answer."""

    @property
    def is_linear(self) -> bool:
        """Whether the head is a linear function of one feature vector, whose best is computed."""

    @property
    def takes_settings(self) -> bool:
        """Whether the loss reads its settings."""

    @property
    def label_smoothing(self) -> float:
        """What is usual."""

    def class_weights(self, manifest: Manifest) -> tuple[float, ...] | None:
        """Of each class, the rare ones weighed up; None where the loss sees to it itself."""

    def are_imbalanced(self, counts: Mapping[str, int]) -> bool:
        """Whether classes with these numbers of training images call for weights."""

    def targets(self, samples: Sequence[Sample], frame: Frame, moved: Moved) -> Targets:
        """What is true of the images, moved as they are."""

    def loss(
        self, head: nn.Module, outputs: Outputs, targets: Targets, settings: LossSettings
    ) -> Tensor:
        """Mean loss of the batch, a scalar that can be differentiated."""


class Judging(Protocol):
    """How good answers are."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that can be an objective, each the better the larger."""

    @property
    def measured(self) -> tuple[str, str]:
        """What classes are compared by, and what is counted of them."""

    def objective(self, class_counts: Mapping[str, int]) -> tuple[str, str]:
        """Name of the metric to choose trials by, and why, for these training counts."""

    def evidence(
        self, answers: Sequence[Answer], samples: Sequence[Sample], frame: Frame, first: int
    ) -> Evidence:
        """What to keep of answers to these images. first: how many images came before."""

    def evaluate(
        self, evidence: Evidence, samples: Sequence[Sample], frame: Frame
    ) -> dict[str, float]:
        """Every metric that is defined for them by its name."""

    def subset(self, evidence: Evidence, rows: NDArray[np.intp]) -> Evidence:
        """That of these images alone, in this order; the same image may come twice."""

    def drawn(
        self,
        evidence: Evidence,
        samples: Sequence[Sample],
        frame: Frame,
        draws: Iterable[NDArray[np.intp]],
    ) -> Iterator[dict[str, float]]:
        """What `evaluate` would find for each draw of as many images from these."""

    def right(
        self, evidence: Evidence, samples: Sequence[Sample], frame: Frame
    ) -> NDArray[np.bool_] | None:
        """Whether each image is answered right; None where that is no yes or no."""

    def by_class(
        self, evidence: Evidence, samples: Sequence[Sample], frame: Frame
    ) -> dict[str, tuple[int, float]]:
        """Of each class that is there how many, and how well it is found, in [0, 1]."""

    def naive(self, metric: str, samples: Sequence[Sample], frame: Frame) -> tuple[float, str]:
        """What a model that knows nothing would get, and what it would do, in words."""

    def confusion(self, evidence: Evidence, samples: Sequence[Sample], frame: Frame) -> Confusion:
        """What was taken for what."""

    def calibrated(
        self, evidence: Evidence, samples: Sequence[Sample], frame: Frame
    ) -> Calibration:
        """What makes answers mean what they say, fitted to these images."""

    def tested(
        self, evidence: Evidence, samples: Sequence[Sample], frame: Frame, seed: int
    ) -> TestFigures:
        """Figures with their intervals, by class too; without pictures."""

    def notable(
        self, evidence: Evidence, samples: Sequence[Sample], frame: Frame, most: int
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rows of the images that came out worst, the worst first, and of typical ones."""

    @property
    def pictures_tell(self) -> bool:
        """Whether a drawing without its words shows what is true and what was answered."""

    def drawing(self, sample: Sample, answer: Answer, frame: Frame) -> tuple[bytes, Caption]:
        """The image as a small JPEG with truth and answer, and what to write below."""

    def of_scores(
        self, scored: Iterable[pa.RecordBatch], classes: Sequence[str]
    ) -> tuple[int, int, dict[str, float]] | None:
        """Images with a known class, those of an unknown one, and figures; None without any."""


class Answering(Protocol):
    """How answers reach people and programs."""

    @property
    def adjustable(self) -> tuple[str, ...]:
        """What of the calibration a caller may want otherwise."""

    def answers(
        self, head: nn.Module, outputs: Outputs, sizes: Sequence[tuple[int, int]], frame: Frame
    ) -> list[Answer]:
        """One an image, in its own pixels. sizes: width and height of the upright images."""

    def mirrored(self, answer: Answer, width: int) -> Answer:
        """The same answer to the mirrored image, which is so wide in pixels."""

    def columns(self, classes: Sequence[str]) -> list[tuple[str, pa.DataType]]:
        """Of scores, between the path and the model's version."""

    def rows(
        self,
        answers: Sequence[Answer | None],
        labels: Sequence[str | None],
        sizes: Sequence[tuple[int, int] | None],
        frame: Frame,
    ) -> tuple[NDArray[np.intp], list[pa.Array]]:
        """For each row of scores the image that it is of, and the columns.

        answers, sizes: None where an image cannot be read; labels: true classes, None where
        unknown.
        """

    @property
    def exports(self) -> Mapping[str, Export]:
        """What else can be made of rows of scores, by the option that asks for it."""

    def served_columns(self) -> list[tuple[str, pa.DataType]]:
        """Of a served model's answer, one row an image; nothing binary, which Spark refuses."""

    def served(self, answer: Answer, frame: Frame) -> dict[str, object]:
        """One such row."""


@dataclass(frozen=True)
class Task:
    """One kind of question that a network is fine-tuned to answer.

    name: word of the command line, as in `task=classification`; model_type: MLflow's word for
    models that answer it.
    """

    name: str
    model_type: str
    building: Building
    learning: Learning
    judging: Judging
    answering: Answering
