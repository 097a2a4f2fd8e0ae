"""What is transferred from: an architecture, its weights, and the preprocessing they expect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from sft_mlflow.data.canvas import Canvas
from sft_mlflow.data.images import Interpolation
from sft_mlflow.data.pixels import PixelSpec
from sft_mlflow.data.truth import TaskName

Library = Literal["timm", "torchvision"]

# Of RGB in [0, 1]; nearly every published network was trained with them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network of a library, by the library's own name for it: enough to build it anew."""

    library: Library
    name: str

    def __str__(self) -> str:
        return f"{self.library}://{self.name}"


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What the weights were trained to see.

    size: side of the square input in pixels; mean and std: of RGB in [0, 1]; canvas: what whole
    pictures are laid on instead of the square.
    """

    size: int
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    canvas: Canvas | None = None

    @property
    def pixels(self) -> PixelSpec:
        """How a file becomes the pixels that are normalised with mean and std."""
        return PixelSpec(self.size, self.interpolation, self.canvas)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The value whose `dataclasses.asdict` went through JSON."""
        red, green, blue = values["mean"]
        red_std, green_std, blue_std = values["std"]
        return cls(
            size=int(values["size"]),
            interpolation=values["interpolation"],
            mean=(red, green, blue),
            std=(red_std, green_std, blue_std),
            canvas=Canvas(**values["canvas"]) if values.get("canvas") else None,
        )


@dataclass(frozen=True, eq=False)
class SourceModel:
    """A pretrained network, ready to be built.

    classes: names of its head's classes, empty where unknown; weights_sha256: of the tensors
    themselves, so that the same weights in another file format have the same digest; task: what
    its head answers.
    """

    uri: str
    architecture: Architecture
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    state_dict: Mapping[str, Tensor]
    weights_sha256: str
    task: TaskName = "classification"
