"""`torchvision://resnet50/IMAGENET1K_V2`: torchvision's networks with any of their weights."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import torch
import torchvision

from sft_mlflow.errors import DataError, OptionsError
from sft_mlflow.sources import architectures, weights
from sft_mlflow.sources.source_model import Architecture, Interpolation, Preprocessing, SourceModel

PREFIX = "torchvision://"
RANDOM = "random"
_INTERPOLATIONS: dict[str, Interpolation] = {"bilinear": "bilinear", "bicubic": "bicubic"}


def load(uri: str) -> SourceModel:
    """The named network; without a name of weights, torchvision's default ones.

    `torchvision://resnet50/random` is the untrained network, for comparisons.
    """
    name, _, wanted = uri.removeprefix(PREFIX).partition("/")
    known = architectures.names("torchvision")
    if name not in known:
        message = architectures.unknown(name, known, "network of torchvision")
        raise OptionsError(f"--source {uri!r}: {message}")
    architecture = Architecture("torchvision", name)
    available = torchvision.models.get_model_weights(name)
    if wanted not in ("", "DEFAULT", RANDOM) and wanted not in available.__members__:
        choice = [*available.__members__, RANDOM]
        message = architectures.unknown(wanted, choice, f"weights of {name}")
        raise OptionsError(f"--source {uri!r}: {message} There are: {', '.join(choice)}.")
    chosen = available.DEFAULT if wanted in ("", RANDOM) else available[wanted]
    preset = chosen.transforms()
    preprocessing = Preprocessing(
        size=preset.crop_size[0],
        interpolation=_INTERPOLATIONS[preset.interpolation.value],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )
    if wanted == RANDOM:
        state_dict = architectures.build(architecture).state_dict()
        classes: tuple[str, ...] = ()
    else:
        state_dict = _fetch(chosen)
        classes = tuple(chosen.meta["categories"])
    return SourceModel(
        uri=uri,
        architecture=architecture,
        preprocessing=preprocessing,
        classes=classes,
        state_dict=state_dict,
        weights_sha256=weights.digest(state_dict),
    )


def _fetch(chosen: torchvision.models.WeightsEnum) -> dict[str, torch.Tensor]:
    """Weights from torch's cache, or downloaded into it."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / chosen.url.rpartition("/")[2]
    if path.exists():
        return weights.read_state_dict(path)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(chosen.url, str(path), progress=False)
    except (URLError, OSError) as error:
        raise DataError(
            f"no network to download the weights ({error}). Fetch {chosen.url} on another "
            f"machine and put it into {folder} (change that folder with TORCH_HOME)."
        ) from error
    return weights.read_state_dict(path)
