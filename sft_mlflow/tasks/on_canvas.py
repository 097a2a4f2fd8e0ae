"""What boxes and masks share: whole pictures on a canvas, and a head over feature maps."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from sft_mlflow.data.canvas import MULTIPLE, Canvas, canvas_for
from sft_mlflow.data.manifest import Sample
from sft_mlflow.data.pixels import PixelSpec
from sft_mlflow.data.truth import TaskName
from sft_mlflow.errors import OptionsError
from sft_mlflow.sources import architectures, network, whole_models
from sft_mlflow.sources.feature_maps import HEAD, network_over, network_with_maps
from sft_mlflow.sources.network import StagedNetwork
from sft_mlflow.sources.source_model import Architecture, Preprocessing, SourceModel
from sft_mlflow.sources.whole_models import Family

# Longer side in pixels where none is asked for: more is seldom worth its time without an
# accelerator. Smaller pictures are not enlarged.
LONGER_SIDE = 480
# Channels of a head as a part of those of the body's last map, and no fewer and no more than these:
# 64 as EfficientDet has over EfficientNet-B0, 256 as pyramids have over ResNet-50.
WIDTH_SHARE, LEAST_WIDTH, MOST_WIDTH = 1 / 8, 64, 256
# torchvision's head of FCOS divides its channels into so many groups.
_WIDTH_STEP = 32


@dataclass(frozen=True)
class BuildingOnCanvas:
    """How a source becomes a network that is shown whole pictures.

    strides: of the maps that a head of ours reads; over_maps: makes it, for maps of so many
    channels by stride, so many classes, and so many channels of its own; class_layers: its module
    paths that answer with one number a class; over_rest: makes a head of a model of torchvision
    that its body was taken from.
    """

    task: TaskName
    strides: tuple[int, ...]
    over_maps: Callable[[Mapping[int, int], int, int], nn.Module]
    class_layers: tuple[str, ...]
    over_rest: Callable[[nn.Module, Family], nn.Module]

    def preprocessing(
        self, source: SourceModel, samples: Sequence[Sample], size: int | None
    ) -> Preprocessing:
        """Whole pictures on a canvas of the usual shape among the samples.

        size: longer side of the canvas in pixels, made a multiple of 32; None for 480, or less
        where the pictures are smaller. Raises OptionsError for another size than the only one
        that a source is made for.
        """
        own = source.preprocessing
        family = whole_models.family(source.architecture)
        if family is not None and family.square:
            if size not in (None, own.size):
                raise OptionsError(
                    f"--image-size {size}: {source.architecture} is made for {own.size} pixels. "
                    "Leave the option out, or take another source."
                )
            return replace(own, canvas=Canvas(own.size, own.size))
        sizes = [(sample.width, sample.height) for sample in samples]
        if size is None:
            size = min(LONGER_SIDE, round(statistics.median(max(sides) for sides in sizes)))
        longer = MULTIPLE * max(1, round(size / MULTIPLE))
        return replace(own, size=longer, canvas=canvas_for(sizes, longer))

    def network(self, source: SourceModel, classes: int) -> StagedNetwork:
        """The source's body under a head for these classes.

        A classifier gives its body. Of a model for boxes or masks comes the head as well where it
        is for this task, all but what answers for each class; for the other task, its body.
        Raises OptionsError where there are no feature maps, or for torchvision's model for the
        other task.
        """
        if source.task == "classification":
            return self._over(network.classifier_from(source), classes)
        family = whole_models.family(source.architecture)
        if family is not None and family.task != self.task:
            raise OptionsError(
                f"--source {source.uri}: is a model for {family.task}, and the data are for "
                f"{self.task}. Take a classifier, or a model for the same task."
            )
        staged = self.bare_network(source.architecture, classes)
        new = self._class_layers(source.architecture) if source.task == self.task else (f"{HEAD}.",)
        drawn = {k: v for k, v in staged.model.state_dict().items() if k.startswith(new)}
        given = {k: v for k, v in source.state_dict.items() if not k.startswith(new)}
        architectures.load(staged.model, {**given, **drawn}, source.uri)
        return staged

    def bare_network(self, architecture: Architecture, classes: int) -> StagedNetwork:
        """The same, its weights still to be loaded.

        Raises OptionsError where the architecture has no feature maps.
        """
        family = whole_models.family(architecture)
        if family is None:
            return self._over(architectures.build(architecture), classes)
        model = whole_models.build(architecture, classes)
        body = whole_models.take_body(model)
        return network_over(body, self.over_rest(model, family))

    def _over(self, classifier: nn.Module, classes: int) -> StagedNetwork:
        return network_with_maps(
            classifier,
            self.strides,
            lambda channels: self.over_maps(channels, classes, head_width(channels)),
        )

    def _class_layers(self, architecture: Architecture) -> tuple[str, ...]:
        """How the names of the tensors begin that answer for each class."""
        family = whole_models.family(architecture)
        if family is None:
            return tuple(f"{HEAD}.{path}." for path in self.class_layers)
        return tuple(f"{HEAD}.model.{path}." for path in family.class_layers)


def head_width(channels: Mapping[int, int]) -> int:
    """Channels of a head over maps of so many, by their strides."""
    asked = channels[max(channels)] * WIDTH_SHARE
    return min(MOST_WIDTH, max(LEAST_WIDTH, _WIDTH_STEP * round(asked / _WIDTH_STEP)))


def canvas_of(pixels: PixelSpec) -> Canvas:
    """The canvas of a spec that has one."""
    assert pixels.canvas is not None
    return pixels.canvas
