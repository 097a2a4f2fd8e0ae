"""What boxes and masks share: whole pictures on a canvas, and a head over feature maps."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from sft_mlflow.data.canvas import MULTIPLE, Canvas, canvas_for
from sft_mlflow.data.manifest import Sample
from sft_mlflow.data.pixels import PixelSpec
from sft_mlflow.sources import architectures, network
from sft_mlflow.sources.feature_maps import MakeHead, load_body, network_with_maps
from sft_mlflow.sources.network import StagedNetwork
from sft_mlflow.sources.source_model import Architecture, Preprocessing, SourceModel

# Longer side in pixels where none is asked for: more is seldom worth its time without an
# accelerator. Smaller pictures are not enlarged.
LONGER_SIDE = 480


def preprocessing(own: Preprocessing, samples: Sequence[Sample], size: int | None) -> Preprocessing:
    """Whole pictures on a canvas of the usual shape among the samples.

    size: longer side of the canvas in pixels, made a multiple of 32; None for 480, or less where
    the pictures are smaller.
    """
    sizes = [(sample.width, sample.height) for sample in samples]
    if size is None:
        size = min(LONGER_SIDE, round(statistics.median(max(sides) for sides in sizes)))
    longer = MULTIPLE * max(1, round(size / MULTIPLE))
    return replace(own, size=longer, canvas=canvas_for(sizes, longer))


def canvas_of(pixels: PixelSpec) -> Canvas:
    """The canvas of a spec that has one."""
    assert pixels.canvas is not None
    return pixels.canvas


def network_for(source: SourceModel, strides: Sequence[int], make_head: MakeHead) -> StagedNetwork:
    """The source's body under a new head.

    The source may be a classifier or a model for boxes or masks: of that the body is taken.
    """
    if source.task == "classification":
        classifier = network.classifier_from(source)
        return network_with_maps(classifier, strides, make_head)
    staged = bare_network(source.architecture, strides, make_head)
    load_body(staged, source.state_dict, source.uri)
    return staged


def bare_network(
    architecture: Architecture, strides: Sequence[int], make_head: MakeHead
) -> StagedNetwork:
    """The same, its weights still to be loaded."""
    return network_with_maps(architectures.build(architecture), strides, make_head)
