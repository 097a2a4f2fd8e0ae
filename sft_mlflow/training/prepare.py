"""What is settled once, before the first trial, and holds for all of them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from sft_mlflow.errors import OptionsError
from sft_mlflow.reuse.chain import AS_THEY_ARE, Road
from sft_mlflow.sources.network import StagedNetwork
from sft_mlflow.sources.source_model import Preprocessing, SourceModel
from sft_mlflow.tasks import TASKS
from sft_mlflow.training import mirroring
from sft_mlflow.training.precision import Arithmetic, faster_precision
from sft_mlflow.training.probing import Probed, computed, trained
from sft_mlflow.training.recipe import Augmentation, Precision, Recipe
from sft_mlflow.training.trial import Material, network_at

# Of the time that the probe has, what is left for questions to it.
QUESTIONS_SHARE = 0.2
# Seen this often, the images themselves are new enough, and changing them only slows learning.
FEW_EPOCHS = 3


@dataclass(frozen=True)
class Prepared:
    """Of one source: what was settled by looking.

    metrics: of its probe on validation, empty where there was none to fit; seconds_an_image: from
    the file to the answer, for budgets; remarks: what is to be known of the probe, in words.
    """

    uri: str
    image_size: int
    full_depth: int
    augmentation: Augmentation
    precision: Precision
    metrics: Mapping[str, float]
    seconds_an_image: float
    remarks: Sequence[str] = ()


def prepare(
    material: Material,
    recipe: Recipe,
    *,
    image_size: int | None,
    augmentation: Augmentation | None,
    precision: Precision | None,
    progress: Callable[[str, int, int], None],
    deadline: float | None = None,
) -> Prepared:
    """Fit the source's probe and settle what was left open (None) by looking, not guessing.

    recipe: what trials of that source share; its own size, augmentation and precision do not
    count. The probe is kept in the material's folder where trials start from it; else it is fitted
    only if the augmentation depends on it. progress: called with what is done, how much of it, and
    how much there is; deadline: when a probe that is trained, and the question that it is asked
    about mirrored images, have to end, on the clock of `time.monotonic`. Raises OptionsError where
    the source does not take images of that size.
    """
    begun = time.monotonic()
    source = material.source(recipe.source)
    network, preprocessing = _at_size(material, source, image_size)
    road = Road(
        network,
        source.weights_sha256,
        preprocessing,
        Arithmetic("float32", material.device.type),
        material.device,
    )
    measuring = partial(progress, "Measuring what images and steps take")
    measuring(0, 3)
    prices = material.prices(road, material.manifest.side("train"), AS_THEY_ARE)
    measuring(1, 3)
    if precision is None:
        network.freeze(network.full_depth)
        height, width, _ = preprocessing.pixels.shape
        precision = faster_precision(
            network.model, (height, width), recipe.batch_size, material.device
        )
        # Nothing of it trains while features are computed.
        network.freeze(0)
        network.model.eval()
    measuring(2, 3)
    linear = TASKS[material.task].learning.is_linear
    # Before the head has learnt to find little in a blank image.
    seconds_an_image = prices.decode + prices.forward(0, network.full_depth)
    seconds_an_image += 0.0 if linear else _head_seconds(material, network, preprocessing)
    measuring(3, 3)
    asks_mirror = augmentation is None and recipe.epochs > FEW_EPOCHS
    if augmentation is None:
        augmentation = "light" if asks_mirror else "none"
    probed, remarks = None, []
    # One that is computed is cheap enough to be fitted for the question alone.
    if recipe.head_start == "probe" or (linear and asks_mirror):
        settled = replace(recipe, image_size=preprocessing.size, precision=precision)
        until = None if deadline is None else deadline - QUESTIONS_SHARE * (deadline - begun)
        probed = _probed(material, road, settled, progress, until)
        path = material.probe_path(recipe.source, preprocessing.size)
        probed.head.save(path)
        if probed.remark is not None:
            remarks.append(probed.remark)
        if asks_mirror:
            probed.head.copy_into(network.head)
            told = partial(progress, "Mirroring images")
            # Beside the features of a linear probe the question is cheap.
            until = None if linear else deadline
            verdict = mirroring.judge(material, road, probed, recipe.metric, told, until)
            augmentation = "natural" if verdict.is_harmless else augmentation
            remarks.append(verdict.because)
        # Where it was trained. Until here a killed study goes on from there.
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)
    return Prepared(
        uri=recipe.source,
        image_size=preprocessing.size,
        full_depth=network.full_depth,
        augmentation=augmentation,
        precision=precision,
        metrics={} if probed is None else {f"valid/{k}": v for k, v in probed.metrics.items()},
        seconds_an_image=seconds_an_image,
        remarks=remarks,
    )


def _at_size(
    material: Material, source: SourceModel, image_size: int | None
) -> tuple[StagedNetwork, Preprocessing]:
    """The source's network for images of that size, or of its own where it takes no other.

    Raises OptionsError where another size is asked for, or squares would not do.
    """
    network, preprocessing = network_at(material, source, image_size)
    if _accepts(network, preprocessing, material.device):
        return network, preprocessing
    own = source.preprocessing.size
    if preprocessing.canvas is not None:
        raise OptionsError(
            f"--source {source.uri}: takes squares of {own} pixels only, and boxes and masks are "
            f"found in whole pictures. Choose another network."
        )
    if image_size is not None or preprocessing.size == own:
        raise OptionsError(
            f"--image-size {preprocessing.size}: {source.uri} takes images of {own} pixels only; "
            f"use --image-size {own}."
        )
    return network_at(material, source, own)


def _probed(
    material: Material,
    road: Road,
    recipe: Recipe,
    progress: Callable[[str, int, int], None],
    until: float | None,
) -> Probed:
    """The probe at the road's end: computed, or trained as the recipe says until then."""
    if TASKS[material.task].learning.is_linear:
        told = partial(progress, "Fitting the probe, images")
        return computed(material, road, recipe.class_weights, recipe.metric, told)
    told = partial(progress, "Fitting the probe, epochs")
    return trained(material, recipe, road.network.head_path, told, until)


@torch.no_grad()
def _head_seconds(
    material: Material, network: StagedNetwork, preprocessing: Preprocessing
) -> float:
    """What a head that is a network of its own takes of an image, from its maps to the answer."""
    height, width, _ = preprocessing.pixels.shape
    sizes = [(width, height)] * preprocessing.pixels.together
    images = torch.zeros(len(sizes), 3, height, width, device=material.device)
    network.model.eval()
    given = [network.segment(0, at)(images) for at in network.inputs(network.full_depth)]
    suffix, answering = network.suffix(0), TASKS[material.task].answering
    frame = material.frame(preprocessing)
    taken = []
    # The first one pays for the choice of kernels.
    for _ in range(2):
        begun = time.perf_counter()
        answering.answers(network.head, suffix(*given), sizes, frame)
        taken.append(time.perf_counter() - begun)
    return min(taken) / len(sizes)


@torch.no_grad()
def _accepts(network: StagedNetwork, preprocessing: Preprocessing, device: torch.device) -> bool:
    height, width, _ = preprocessing.pixels.shape
    try:
        network.model.eval()(torch.zeros(1, 3, height, width, device=device))
    # ViT asserts its size; others fail in a product of shapes that do not fit.
    except (AssertionError, RuntimeError, ValueError):
        return False
    return True
