"""`torchvision://resnet50/IMAGENET1K_V2`: torchvision's networks with any of their weights.

Its detectors and segmenters too, as `torchvision://fasterrcnn_resnet50_fpn_v2/COCO_V1`.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor
from torchvision.models.vision_transformer import interpolate_embeddings

from sft_mlflow.data.images import Interpolation
from sft_mlflow.errors import DataError, OptionsError
from sft_mlflow.sources import architectures, weights, whole_models
from sft_mlflow.sources.source_model import Architecture, Preprocessing, SourceModel

PREFIX = "torchvision://"
RANDOM = "random"
VIT_SIZE = 224
POSITIONS = "encoder.pos_embedding"
_DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
_INTERPOLATIONS: dict[str, Interpolation] = {"bilinear": "bilinear", "bicubic": "bicubic"}


def load(uri: str) -> SourceModel:
    """The named network; without a name of weights, torchvision's default ones.

    `torchvision://resnet50/random` is the untrained network, for comparisons.
    """
    name, _, wanted = uri.removeprefix(PREFIX).partition("/")
    if name not in names():
        message = architectures.unknown(name, names(), "network of torchvision")
        raise OptionsError(f"--source {uri!r}: {message}")
    architecture = Architecture("torchvision", name)
    available = torchvision.models.get_model_weights(name)
    if wanted not in ("", "DEFAULT", RANDOM) and wanted not in available.__members__:
        choice = [*available.__members__, RANDOM]
        message = architectures.unknown(wanted, choice, f"weights of {name}")
        raise OptionsError(f"--source {uri!r}: {message} There are: {', '.join(choice)}.")
    chosen = available.DEFAULT if wanted in ("", RANDOM) else available[wanted]
    if whole_models.family(architecture) is not None:
        found = None
        if wanted != RANDOM:
            found = whole_models.published(architecture, _fetch(chosen))
        return whole_models.source(uri, architecture, found)
    if wanted == RANDOM:
        # The same in every process of a study, and in a study that goes on tomorrow.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            state_dict = architectures.build(architecture).state_dict()
        classes: tuple[str, ...] = ()
    else:
        state_dict = for_this_network(_fetch(chosen))
        classes = tuple(chosen.meta["categories"])
    preset = chosen.transforms()
    preprocessing = Preprocessing(
        size=VIT_SIZE if POSITIONS in state_dict else preset.crop_size[0],
        interpolation=_INTERPOLATIONS[preset.interpolation.value],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )
    return SourceModel(
        uri=uri,
        architecture=architecture,
        preprocessing=preprocessing,
        classes=classes,
        state_dict=state_dict,
        weights_sha256=weights.digest(state_dict),
    )


def names() -> list[str]:
    """Every network that can be named: classifiers, detectors, segmenters."""
    return [*architectures.names("torchvision"), *whole_models.names()]


def for_this_network(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as torchvision's own loading functions would name and shape them."""
    # DenseNet's files are older than the rule that no name of a module may hold a dot.
    renamed = {_DENSE_LAYER.sub(r"\1\2", name): t for name, t in state_dict.items()}
    if POSITIONS in renamed:
        # Some of ViT's were trained at 384 or 512 pixels, and the network is built for 224.
        patch = renamed["conv_proj.weight"].shape[-1]
        return dict(interpolate_embeddings(VIT_SIZE, patch, OrderedDict(renamed)))
    return renamed


def _fetch(chosen: torchvision.models.WeightsEnum) -> dict[str, Tensor]:
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
