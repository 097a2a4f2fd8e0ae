"""Source URI -> SourceModel. One file a scheme, and one line in the list below."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from sft_mlflow.errors import OptionsError
from sft_mlflow.sources import (
    architectures,
    embedded,
    timm_models,
    torchvision_models,
    weights_file,
)
from sft_mlflow.sources.source_model import SourceModel

SCHEMES: Mapping[str, Callable[[str], SourceModel]] = {
    "embedded": embedded.load,
    "torchvision": torchvision_models.load,
    "timm": timm_models.load,
    "file": weights_file.load,
}
# Addresses in a tracking server: only that layer can fetch them, and it hands over a folder.
TRACKED_SCHEMES = ("models", "runs")


def is_tracked(uri: str) -> bool:
    """Whether the URI names a model in a tracking server, to be fetched before `resolve`."""
    return uri.partition(":")[0] in TRACKED_SCHEMES


def resolve(uri: str, fetched: Path | None = None) -> SourceModel:
    """The source that the URI names; fetched: local folder of a tracked one.

    Raises OptionsError for an unknown scheme or name, DataError where weights cannot be had.
    """
    if fetched is not None:
        return weights_file.load_folder(fetched, uri)
    scheme, separator, _ = uri.partition("://")
    if not separator:
        if Path(uri).exists():
            return weights_file.load(Path(uri).resolve().as_uri())
        raise OptionsError(
            f"--source {uri!r} is no URI. Write SCHEME://NAME, for example "
            f"embedded://efficientnet_lite0 or torchvision://resnet50."
        )
    if scheme not in SCHEMES:
        known = [*SCHEMES, *TRACKED_SCHEMES]
        raise OptionsError(f"--source {uri!r}: {architectures.unknown(scheme, known, 'scheme')}")
    return SCHEMES[scheme](uri)
