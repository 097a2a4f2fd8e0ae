"""`file:///weights.safetensors?arch=resnet50`, and folders of models made here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from torch import Tensor

from sft_mlflow.errors import OptionsError
from sft_mlflow.sources import (
    architectures,
    cuts,
    model_folder,
    torchvision_models,
    weights,
    whole_models,
)
from sft_mlflow.sources.source_model import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Architecture,
    Preprocessing,
    SourceModel,
)


def load(uri: str) -> SourceModel:
    """Weights in a local file, with the architecture named in `?arch=`; or a model folder."""
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise OptionsError(f"--source {uri!r}: write three slashes, as in file:///weights.pth.")
    path = Path(unquote(parts.path))
    query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    if model_folder.is_model_folder(path):
        return load_folder(path, uri)
    odd = sorted(query.keys() - {"arch", "size", "mean", "std"})
    if odd or "arch" not in query:
        raise OptionsError(
            f"--source {uri!r}: say which network the weights belong to, as in "
            f"file:///weights.safetensors?arch=resnet50; size, mean and std may follow."
        )
    state_dict = weights.read_state_dict(path)
    architecture = _architecture(query["arch"])
    family = whole_models.family(architecture)
    if family is not None:
        if family.square and "size" in query:
            raise OptionsError(
                f"--source {uri!r}: {architecture.name} has one size; leave size out."
            )
        source = whole_models.source(uri, architecture, state_dict)
    else:
        if architecture.library == "torchvision":
            state_dict = torchvision_models.for_this_network(state_dict)
        source = SourceModel(
            uri=uri,
            architecture=architecture,
            preprocessing=Preprocessing(224, "bilinear", IMAGENET_MEAN, IMAGENET_STD),
            classes=_classes(architecture, state_dict),
            state_dict=state_dict,
            weights_sha256=weights.digest(state_dict),
        )
    own = source.preprocessing
    asked = replace(
        own,
        size=_size(uri, query["size"]) if "size" in query else own.size,
        mean=_triple(uri, query["mean"]) if "mean" in query else own.mean,
        std=_triple(uri, query["std"]) if "std" in query else own.std,
    )
    return replace(source, preprocessing=asked)


def _architecture(name: str) -> Architecture:
    """The architecture of that name, torchvision's before timm's; the nearest names if unknown."""
    of_torchvision, of_timm = torchvision_models.names(), architectures.names("timm")
    if name in of_torchvision:
        return Architecture("torchvision", name)
    if name in of_timm:
        return Architecture("timm", name)
    raise OptionsError(architectures.unknown(name, of_torchvision + of_timm, "architecture"))


def load_folder(folder: Path, uri: str) -> SourceModel:
    """A model that a study made, as the next source; its weights are verified."""
    config = model_folder.read_config(folder)
    return SourceModel(
        uri=uri,
        architecture=config.architecture,
        preprocessing=config.preprocessing,
        classes=config.classes,
        state_dict=model_folder.read_weights(folder, config),
        weights_sha256=config.weights_sha256,
        task=config.task,
    )


def _classes(architecture: Architecture, state_dict: Mapping[str, Tensor]) -> tuple[str, ...]:
    """As many names as the head in the file has rows; none where the file has no such head."""
    head = cuts.head_of(architectures.build(architecture))
    weight = state_dict.get(f"{head}.weight")
    return () if weight is None else tuple(map(str, range(len(weight))))


def _triple(uri: str, text: str) -> tuple[float, float, float]:
    try:
        # A comma would begin another source.
        red, green, blue = map(float, text.split(":"))
    except ValueError:
        raise OptionsError(f"--source {uri!r}: {text!r} is not three numbers (R:G:B).") from None
    return red, green, blue


def _size(uri: str, text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise OptionsError(f"--source {uri!r}: size={text} is no number of pixels.")
    return int(text)
