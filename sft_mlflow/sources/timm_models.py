"""`timm://resnet18.a1_in1k`: timm's networks with the pretrained tag behind the dot."""

from __future__ import annotations

from typing import Any

import timm
from huggingface_hub import constants
from timm.data.config import resolve_data_config

from sft_mlflow.data.images import Interpolation
from sft_mlflow.errors import DataError, OptionsError
from sft_mlflow.sources import architectures, weights
from sft_mlflow.sources.source_model import Architecture, Preprocessing, SourceModel

PREFIX = "timm://"
_INTERPOLATIONS: dict[str, Interpolation] = {"bilinear": "bilinear", "nearest": "nearest"}


def load(uri: str) -> SourceModel:
    """The named network with its pretrained weights, from the Hugging Face cache or hub."""
    name = uri.removeprefix(PREFIX)
    architecture = Architecture("timm", name.partition(".")[0])
    if architecture.name not in architectures.names("timm"):
        known = architectures.names("timm")
        message = architectures.unknown(name, known, "network of timm")
        raise OptionsError(f"--source {uri!r}: {message}")
    if name not in timm.list_pretrained() and not timm.list_pretrained(f"{name}.*"):
        raise OptionsError(f"--source {uri!r}: timm has no pretrained weights of that name.")
    try:
        model: Any = architectures.from_timm(name, pretrained=True)
    # Whatever the hub's client raises when it is offline derives from one of these.
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"--source {uri!r}: the weights could not be fetched ({error}). Where the network is "
            f"closed, run timm.create_model({name!r}, pretrained=True) on another machine and "
            f"copy its Hugging Face cache into {constants.HF_HUB_CACHE} (change that folder with "
            f"HF_HOME)."
        ) from error
    settings = resolve_data_config(model.pretrained_cfg)
    state_dict = model.state_dict()
    return SourceModel(
        uri=uri,
        architecture=architecture,
        preprocessing=Preprocessing(
            size=settings["input_size"][-1],
            interpolation=_INTERPOLATIONS.get(settings["interpolation"], "bicubic"),
            mean=tuple(settings["mean"]),
            std=tuple(settings["std"]),
        ),
        # One that is published without a head was given one for one class.
        classes=tuple(map(str, range(max(1, model.pretrained_cfg["num_classes"])))),
        state_dict=state_dict,
        weights_sha256=weights.digest(state_dict),
    )
