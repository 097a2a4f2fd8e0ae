"""The frozen part of a network."""

from __future__ import annotations

from torch import nn

from sft_mlflow.sources.network import StagedNetwork


def prefix(network: StagedNetwork, depth: int) -> nn.Module:
    """From pixels to the cut below the last `depth` stages; the pixels themselves at D."""
    point = network.full_depth - depth
    return network.segment(0, point) if point else nn.Identity()
