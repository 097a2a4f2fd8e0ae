"""How a source becomes a classifier."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from sft_mlflow.data.manifest import Sample
from sft_mlflow.sources import network
from sft_mlflow.sources.network import StagedNetwork
from sft_mlflow.sources.source_model import Architecture, Preprocessing, SourceModel

# A picture is enlarged at most this much: beyond, a network computes on invented pixels.
ENLARGEMENT = 4
SMALLEST, STEP = 64, 32


class ClassBuilding:
    """The source's network with a linear layer for the new classes."""

    def preprocessing(
        self, source: SourceModel, samples: Sequence[Sample], size: int | None
    ) -> Preprocessing:
        """The centre square; by default at the source's own size.

        But with no enlargement beyond four times, in multiples of 32 from 64.
        """
        own = source.preprocessing
        if size is None:
            shorter = statistics.median(min(sample.width, sample.height) for sample in samples)
            enlarged = STEP * round(ENLARGEMENT * shorter / STEP)
            size = min(own.size, max(SMALLEST, enlarged))
        return replace(own, size=size, canvas=None)

    def network(self, source: SourceModel, classes: int) -> StagedNetwork:
        """The classifier with a linear layer for the new classes."""
        return network.network_from(source, classes)

    def bare_network(self, architecture: Architecture, classes: int) -> StagedNetwork:
        """The same, its weights still to be loaded."""
        return network.bare_network(architecture, classes)
