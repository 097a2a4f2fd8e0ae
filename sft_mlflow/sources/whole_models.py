"""torchvision's detectors and segmenters: networks whose own heads find boxes or masks.

They come apart into a body, which is cut into stages like that of a classifier, and the rest, which
is torchvision's code as it stands. Tensors of the body are named `body.`, those of the rest
`head.model.` and as torchvision does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from sft_mlflow.data.truth import TaskName
from sft_mlflow.errors import DataError
from sft_mlflow.sources import weights
from sft_mlflow.sources.feature_maps import BODY, HEAD
from sft_mlflow.sources.source_model import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Architecture,
    Preprocessing,
    SourceModel,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Family:
    """What models of one kind have in common.

    task: what they answer; class_layers: module paths of what answers with one number a class;
    backgrounds: classes that they count before the first of the user's; square: whether they are
    made for a square picture of one size.
    """

    task: TaskName
    class_layers: tuple[str, ...]
    backgrounds: int = 0
    square: bool = False


_ONE_STAGE = Family("detection", ("head.classification_head.cls_logits",))
_ATROUS = Family("segmentation", ("classifier.4",))
# By how torchvision's names begin. Its Mask R-CNN and Keypoint R-CNN want more than boxes.
FAMILIES: Mapping[str, Family] = {
    "fasterrcnn_": Family("detection", ("roi_heads.box_predictor",), backgrounds=1),
    "retinanet_": _ONE_STAGE,
    "fcos_": _ONE_STAGE,
    "ssd300_": Family("detection", ("head.classification_head",), backgrounds=1, square=True),
    # Of each of its six maps the last layer; before it come others that are not of classes.
    "ssdlite320_": Family(
        "detection",
        tuple(f"head.classification_head.module_list.{number}.1" for number in range(6)),
        backgrounds=1,
        square=True,
    ),
    "deeplabv3_": _ATROUS,
    "fcn_": _ATROUS,
    "lraspp_": Family("segmentation", ("classifier.low_classifier", "classifier.high_classifier")),
}
# Their published weights were trained with a BatchNorm that adds nothing to the variance, which
# torchvision sets where it loads them itself (`overwrite_eps`).
_PUBLISHED_WITHOUT_EPS = ("fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn")
_EPS = 1e-5

# Shorter side in pixels of the pictures that the segmenters were judged on.
_SEGMENTERS_SIZE = 520


def names() -> list[str]:
    """Every such model of torchvision."""
    modules = (torchvision.models.detection, torchvision.models.segmentation)
    known = [name for module in modules for name in torchvision.models.list_models(module=module)]
    return [name for name in known if name.startswith(tuple(FAMILIES))]


def family(architecture: Architecture) -> Family | None:
    """What is known of such a model; None for a classifier."""
    if architecture.library != "torchvision":
        return None
    of_name = (one for start, one in FAMILIES.items() if architecture.name.startswith(start))
    return next(of_name, None)


def build(architecture: Architecture, classes: int) -> nn.Module:
    """The model with random weights for that many classes of the user's, in eval mode."""
    known = family(architecture)
    assert known is not None
    model: nn.Module = torchvision.models.get_model(
        architecture.name,
        weights=None,
        # Said, because else it is downloaded.
        weights_backbone=None,
        num_classes=known.backgrounds + classes,
    )
    return model.eval()


def published(architecture: Architecture, found: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """torchvision's published tensors, for the BatchNorm that is built here."""
    if architecture.name not in _PUBLISHED_WITHOUT_EPS:
        return found
    scaled = dict(found)
    for name, variance in found.items():
        if name.endswith(".running_var"):
            weight = f"{name.removesuffix('running_var')}weight"
            # w / sqrt(v) is w' / sqrt(v + eps); a channel without variance says nothing either way.
            factor = ((variance + _EPS) / variance).sqrt().where(variance > 0, 1.0)
            scaled[weight] = found[weight] * factor
    return scaled


def take_body(model: nn.Module) -> nn.Module:
    """The body of the model, which keeps the rest; in its place it hands on what it is given.

    The body answers with a dict of maps, the finest first.
    """
    backbone = model.get_submodule("backbone")
    if isinstance(backbone, BackboneWithFPN):
        body: nn.Module = backbone.body
        backbone.body = nn.Identity()
        return body
    model.backbone = nn.Identity()
    return backbone


def source(uri: str, architecture: Architecture, found: Mapping[str, Tensor] | None) -> SourceModel:
    """The source of these tensors, named as torchvision names them; None for random ones.

    Raises DataError where they do not fit.
    """
    known = family(architecture)
    assert known is not None
    # Random weights are the same in every process, and in a study that goes on tomorrow.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(architecture, classes=1)
    if found is not None:
        _load(model, found, known, uri)
    state_dict = _as_staged(_shared(model.state_dict(), known))
    return SourceModel(
        uri=uri,
        architecture=architecture,
        preprocessing=_preprocessing(model),
        classes=(),
        state_dict=state_dict,
        weights_sha256=weights.digest(state_dict),
        task=known.task,
    )


def _load(model: nn.Module, found: Mapping[str, Tensor], known: Family, uri: str) -> None:
    """Fill the model; raises DataError where the tensors are another model's."""
    given = _shared(found, known)
    odd: list[str] = []
    try:
        # Modules that were named otherwise when the weights were published see to it themselves.
        missing, odd = model.load_state_dict(given, strict=False)
        odd += _shared(dict.fromkeys(missing), known)
    except RuntimeError as error:
        odd += [line.strip() for line in str(error).splitlines()[1:]]
    if odd:
        raise DataError(
            f"{uri}: the weights are of another network: {len(odd)} tensors are missing, unknown "
            f"or of another shape ({'; '.join(odd[:3])}{'; …' if len(odd) > 3 else ''}). Name the "
            "one they belong to, torchvision://NAME or file:///PATH?arch=NAME."
        )


def _shared(tensors: Mapping[str, T], known: Family) -> dict[str, T]:
    """Without what answers for each class, and heads that only pretraining had."""
    passed_over = ("aux_classifier.", *(f"{path}." for path in known.class_layers))
    return {name: value for name, value in tensors.items() if not name.startswith(passed_over)}


def _preprocessing(model: nn.Module) -> Preprocessing:
    """What torchvision shows such a model."""
    shown = getattr(model, "transform", None)
    if shown is None:
        return Preprocessing(_SEGMENTERS_SIZE, "bilinear", IMAGENET_MEAN, IMAGENET_STD)
    size = shown.fixed_size or shown.min_size
    return Preprocessing(size[0], "bilinear", tuple(shown.image_mean), tuple(shown.image_std))


def _as_staged(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the names that they have here."""
    under_pyramid = "backbone.body."
    before = under_pyramid if any(n.startswith(under_pyramid) for n in state_dict) else "backbone."

    def here(name: str) -> str:
        inside = name.removeprefix(before)
        return f"{HEAD}.model.{name}" if inside == name else f"{BODY}.{inside}"

    return {here(name): tensor for name, tensor in state_dict.items()}
