"""What is settled once, before the first trial, and holds for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sft_mlflow.errors import OptionsError
from sft_mlflow.reuse.chain import AS_THEY_ARE, FILL_BATCH, Chain, Images, Road, Rows
from sft_mlflow.sources.network import StagedNetwork
from sft_mlflow.sources.source_model import SourceModel
from sft_mlflow.tasks import TASKS
from sft_mlflow.training.precision import Arithmetic, faster_precision
from sft_mlflow.training.probe import Features, Probe, fit_probe
from sft_mlflow.training.recipe import Augmentation, Precision
from sft_mlflow.training.trial import Material, network_at

# Called with (done, in all).
Progress = Callable[[int, int], None]

# A picture is enlarged at most this much: beyond, a network computes on invented pixels.
ENLARGEMENT = 4
SMALLEST, STEP = 64, 32
# Mirrored validation images may cost the probe so much accuracy, and mirroring is still harmless.
MIRROR_LOSS = 0.03
# Seen this often, the images themselves are new enough, and changing them only slows learning.
FEW_EPOCHS = 3
# Features of more would fill the memory, and teach a linear probe of a thousand inputs no more.
PROBE_IMAGES = 20_000


@dataclass(frozen=True)
class Prepared:
    """Of one source: what was settled by looking.

    metrics: of its probe on validation, empty where there was none to fit; seconds_an_image: of a
    forward pass, for budgets.
    """

    uri: str
    image_size: int
    full_depth: int
    augmentation: Augmentation
    precision: Precision
    metrics: Mapping[str, float]
    seconds_an_image: float


def natural_size(source: SourceModel, shorter_side: float) -> int:
    """Side in pixels at which to show images with that shorter side to the source.

    The source's own size, but no enlargement beyond four times, in multiples of 32 from 64.
    """
    enlarged = STEP * round(ENLARGEMENT * shorter_side / STEP)
    return min(source.preprocessing.size, max(SMALLEST, enlarged))


def prepare(
    material: Material,
    uri: str,
    *,
    image_size: int | None,
    shorter_side: float,
    augmentation: Augmentation | None,
    precision: Precision | None,
    epochs: int,
    batch_size: int,
    class_weights: tuple[float, ...] | None,
    metric: str,
    with_probe: bool,
    progress: Progress,
) -> Prepared:
    """Fit the source's probe and settle what was left open (None) by looking, not guessing.

    with_probe: keep the probe in the material's folder, for trials to start from; without, it is
    fitted only if the augmentation depends on it. Raises OptionsError where the source does not
    take images of that size.
    """
    source = material.source(uri)
    size = image_size or natural_size(source, shorter_side)
    network, preprocessing = network_at(material, source, size)
    if not _accepts(network, size, material.device):
        own = source.preprocessing.size
        if image_size is not None or size == own:
            raise OptionsError(
                f"--image-size {size}: {uri} takes images of {own} pixels only; "
                f"use --image-size {own}."
            )
        size = own
        network, preprocessing = network_at(material, source, size)
    road = Road(
        network,
        source.weights_sha256,
        preprocessing,
        Arithmetic("float32", material.device.type),
        material.device,
    )
    train, valid = (at_most(PROBE_IMAGES, material.images(s)) for s in ("train", "valid"))
    prices = material.prices(road, train, AS_THEY_ARE)
    asks_mirror = augmentation is None and epochs > FEW_EPOCHS
    metrics: Mapping[str, float] = {}
    keeps_class = False
    if with_probe or asks_mirror:
        probe, metrics = _probe(material, road, train, valid, class_weights, metric, progress)
        probe.save(material.probe_path(uri, size))
    if asks_mirror:
        mirrored = _mirrored_features(material, road, valid)
        found = _evaluate(material, probe.outputs(mirrored), mirrored.targets)
        keeps_class = metrics["accuracy"] - found["accuracy"] <= MIRROR_LOSS
    network.freeze(network.full_depth)
    return Prepared(
        uri=uri,
        image_size=size,
        full_depth=network.full_depth,
        augmentation=augmentation or _augmentation(epochs, keeps_class),
        precision=precision or faster_precision(network.model, size, batch_size, material.device),
        metrics={f"valid/{name}": value for name, value in metrics.items()},
        seconds_an_image=prices.decode + prices.forward(0, network.full_depth),
    )


def _probe(
    material: Material,
    road: Road,
    train: Images,
    valid: Images,
    class_weights: tuple[float, ...] | None,
    metric: str,
    progress: Progress,
) -> tuple[Probe, Mapping[str, float]]:
    """The probe of the road's end, and its metrics on validation."""
    features, of_valid = (_features(material, road, side, progress) for side in (train, valid))
    evaluate = partial(_evaluate, material)
    classes = len(material.manifest.classes)
    probe = fit_probe(features, of_valid, classes, class_weights, evaluate, metric)
    return probe, evaluate(probe.valid, of_valid.targets)


def _evaluate(
    material: Material, outputs: NDArray[np.float32], targets: NDArray[np.int64]
) -> Mapping[str, float]:
    return TASKS[material.task].evaluate(outputs, targets, material.manifest.classes)


def at_most(most: int, images: Images) -> Images:
    """So many of the images, chosen by their digests: of each class its share, at least one."""
    if len(images.samples) <= most:
        return images
    digests = np.array([sample.digest for sample in images.samples])
    share = most / len(digests)
    rows = np.concatenate(
        [
            of_class[np.argsort(digests[of_class])][: math.ceil(share * len(of_class))]
            for index in np.unique(images.targets)
            for of_class in [np.flatnonzero(images.targets == index)]
        ]
    )
    rows.sort()
    return Images(tuple(images.samples[row] for row in rows), images.targets[rows])


def _augmentation(epochs: int, keeps_class: bool) -> Augmentation:
    if epochs <= FEW_EPOCHS:
        return "none"
    return "natural" if keeps_class else "light"


def _features(material: Material, road: Road, images: Images, progress: Progress) -> Features:
    """What the head reads of each image, kept for the trials."""
    point = road.network.full_depth
    kept = point if material.reuse else 0
    chain = Chain(images, road, AS_THEY_ARE, material.store, kept={0, kept})
    for done, total in chain.fill(kept):
        progress(done, total)
    return _gathered(chain, lambda rows: chain.values(rows, 0, point))


def _mirrored_features(material: Material, road: Road, images: Images) -> Features:
    """The same of the mirrored images."""
    chain = Chain(images, road, AS_THEY_ARE, material.store, kept={0})
    run = road.segment(0, road.network.full_depth)
    return _gathered(chain, lambda rows: run(chain.values(rows, 0, 0).flip(2)))


def _gathered(chain: Chain, values: Callable[[Rows], Tensor]) -> Features:
    rows = np.arange(len(chain.images.targets))
    parts = [
        values(rows[start : start + FILL_BATCH]).float().cpu().numpy()
        for start in range(0, len(rows), FILL_BATCH)
    ]
    return Features(np.concatenate(parts), chain.images.targets)


@torch.no_grad()
def _accepts(network: StagedNetwork, size: int, device: torch.device) -> bool:
    try:
        network.model.eval()(torch.zeros(1, 3, size, size, device=device))
    # ViT asserts its size; others fail in a product of shapes that do not fit.
    except (AssertionError, RuntimeError, ValueError):
        return False
    return True
