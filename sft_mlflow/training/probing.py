"""The probe of a source: the best head on its frozen body, and what that tells.

Where the head is linear it is computed; else it is trained, as the trial of depth 0 that it is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sft_mlflow.data.manifest import Sample
from sft_mlflow.reuse.chain import AS_THEY_ARE, Road
from sft_mlflow.reuse.planner import Need, planned_chain
from sft_mlflow.sources import model_folder
from sft_mlflow.tasks.base import Evidence
from sft_mlflow.tasks.classification.judging import figures_of
from sft_mlflow.tasks.classification.learning import indices
from sft_mlflow.training.events import EpochEnded
from sft_mlflow.training.head_start import HeadStart
from sft_mlflow.training.probe import Features, fit_probe
from sft_mlflow.training.recipe import Recipe
from sft_mlflow.training.trial import EVIDENCE, MODEL, Material, run_trial

# Called with (done, in all).
Progress = Callable[[int, int], None]

# Features of more would fill the memory, and teach a linear probe of a thousand inputs no more.
PROBE_IMAGES = 20_000
# Of a head that is trained: its rate, and what it takes to get anywhere where
# images or epochs are few.
PROBE_RATE = 3e-3
LEAST_STEPS = 300


@dataclass(frozen=True)
class Probed:
    """What trials of the source start with, and how good it is.

    asked: the validation images that it answered; evidence: of its answers to them; metrics: what
    follows from it; remark: what is to be known of how it came about, if anything.
    """

    head: HeadStart
    asked: Sequence[Sample]
    evidence: Evidence
    metrics: Mapping[str, float]
    remark: str | None = None


def trained(
    material: Material,
    recipe: Recipe,
    head_path: str,
    progress: Progress,
    deadline: float | None,
) -> Probed:
    """The probe of a task whose head is not linear, trained as the recipe says but for its depth.

    Killed, it goes on from its checkpoint. head_path: of the head in the network; deadline: when
    it is to stop, on the clock of `time.monotonic`. Raises TrialError where its loss is not finite.
    """
    steps = math.ceil(len(material.manifest.side("train")) / recipe.batch_size)
    epochs = max(recipe.epochs, math.ceil(LEAST_STEPS / steps))
    alone = replace(
        recipe,
        depth=0,
        lr=PROBE_RATE,
        optimizer="adamw",
        epochs=epochs,
        # A random head needs its steps before it gets anywhere.
        patience=epochs,
        # It is fitted to the images as they are, which the frozen body has to see only once.
        augmentation="none",
        head_start="random",
    )
    folder = material.probe_path(recipe.source, recipe.image_size).with_suffix("")
    best: EpochEnded | None = None
    done = 0
    events, stop = run_trial(material, alone, folder), None
    with suppress(StopIteration):
        while True:
            event = events.send(stop)
            stop = deadline is not None and time.monotonic() > deadline
            if isinstance(event, EpochEnded):
                done = event.epoch
                progress(done, epochs)
                best = event if best is None or event.value > best.value else best
    progress(epochs, epochs)
    assert best is not None
    before = f"{head_path}."
    weights = model_folder.read_weights(folder / MODEL, model_folder.read_config(folder / MODEL))
    tensors = {k.removeprefix(before): v for k, v in weights.items() if k.startswith(before)}
    evidence = np.load(folder / EVIDENCE)
    asked = material.manifest.side("valid")
    metrics = {k.removeprefix("valid/"): v for k, v in best.metrics.items() if "valid/" in k}
    remark = f"the budget stopped the probe after {done} of {epochs} epochs"
    return Probed(
        HeadStart(tensors, evidence), asked, evidence, metrics, remark if done < epochs else None
    )


def computed(
    material: Material,
    road: Road,
    class_weights: tuple[float, ...] | None,
    metric: str,
    progress: Progress,
) -> Probed:
    """The probe of a linear head, at the road's end."""
    classes = material.manifest.classes
    train, valid = (at_most(PROBE_IMAGES, material.manifest.side(s)) for s in ("train", "valid"))
    features, of_valid = (_features(material, road, side, progress) for side in (train, valid))
    probe = fit_probe(features, of_valid, len(classes), class_weights, figures_of, metric)
    # Of a very large side it has seen a part.
    whole = len(valid) == len(material.manifest.side("valid"))
    head = replace(probe.as_start(), evidence=probe.valid if whole else None)
    return Probed(head, valid, probe.valid, figures_of(probe.valid, of_valid.targets))


def at_most(most: int, samples: Sequence[Sample]) -> Sequence[Sample]:
    """So many of the samples, chosen by their digests: of each class its share, at least one."""
    if len(samples) <= most:
        return samples
    digests = np.array([sample.digest for sample in samples])
    labels = np.array([sample.label for sample in samples])
    share = most / len(digests)
    rows = np.concatenate(
        [
            of_class[np.argsort(digests[of_class])][: math.ceil(share * len(of_class))]
            for label in np.unique(labels)
            for of_class in [np.flatnonzero(labels == label)]
        ]
    )
    rows.sort()
    return tuple(samples[row] for row in rows)


def _features(
    material: Material, road: Road, samples: Sequence[Sample], progress: Progress
) -> Features:
    """What the head reads of each image, kept for the trials."""
    point = road.network.full_depth
    need = Need(point, len(samples), 1, range(1))
    prices = material.prices(road, samples, AS_THEY_ARE)
    chain, choice = planned_chain(
        samples, road, AS_THEY_ARE, material.store, need, prices, reuse=material.reuse
    )
    for done, total in chain.fill(choice.start):
        progress(done, total)
    # The store may have had no room for all.
    progress(len(samples), len(samples))

    def batches() -> Iterator[NDArray[np.float32]]:
        rows = np.arange(len(samples))
        together = road.pixel_spec.together
        for start in range(0, len(rows), together):
            values = chain.values(rows[start : start + together], 0, point)
            yield values.float().cpu().numpy()

    width = road.network.head.get_parameter("weight").shape[1]
    return Features(batches(), width, indices(samples, material.manifest.classes))
