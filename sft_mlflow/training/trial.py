"""One trial from its recipe to its model folder, and what all trials of a study share."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from sft_mlflow.data.manifest import Manifest, Sample, Split
from sft_mlflow.data.truth import TaskName
from sft_mlflow.errors import TrialError
from sft_mlflow.reuse import planner
from sft_mlflow.reuse.chain import AS_THEY_ARE, Chain, Road, Views
from sft_mlflow.reuse.planner import Choice, Need, Prices
from sft_mlflow.reuse.store import Store
from sft_mlflow.sources import model_folder, weights
from sft_mlflow.sources.model_folder import ModelConfig
from sft_mlflow.sources.network import StagedNetwork
from sft_mlflow.sources.source_model import Preprocessing, SourceModel
from sft_mlflow.sources.uri import resolve
from sft_mlflow.tasks import TASKS
from sft_mlflow.tasks.base import Frame, Task
from sft_mlflow.tasks.pictures import stacked
from sft_mlflow.training.batches import ChainBatches
from sft_mlflow.training.checkpoints import Checkpoints
from sft_mlflow.training.events import (
    Answered,
    FitEvent,
    Pictured,
    RoadChosen,
    RoadTravelled,
    StoreFilled,
)
from sft_mlflow.training.fit import Fitted, fit
from sft_mlflow.training.head_start import HeadStart
from sft_mlflow.training.precision import Arithmetic
from sft_mlflow.training.randomness import keyed
from sft_mlflow.training.recipe import Recipe
from sft_mlflow.whole_file import remove_abandoned, whole_file

MODEL = "model"
# Of the answers of the trial's model to the validation side, before calibration.
EVIDENCE = "evidence.npy"


@dataclass(frozen=True)
class Material:
    """What trials are made of.

    fetched: local folders of sources from a tracking server; store: of pixels and activations;
    reuse: whether activations are kept there too.
    """

    task: TaskName
    manifest: Manifest
    folder: Path
    device: torch.device
    fetched: dict[str, Path]
    store: Store
    reuse: bool

    def source(self, uri: str) -> SourceModel:
        """The source of that URI."""
        return source_of(uri, self.fetched.get(uri))

    def frame(self, preprocessing: Preprocessing) -> Frame:
        """What answers of a network that is shown images in that way are about."""
        return Frame(self.manifest.classes, preprocessing.pixels, self.manifest.mask_values)

    def prices(self, road: Road, samples: Sequence[Sample], views: Views) -> Prices:
        """What that road costs on this machine; measured once a study."""
        about = json.dumps(road.address(road.network.full_depth, views), sort_keys=True)
        name = hashlib.sha256(about.encode()).hexdigest()[:12]
        path = self.folder / f"prices-{name}.json"
        if path.exists():
            return Prices.from_dict(json.loads(path.read_text()))
        found = planner.measure(road, samples, views, self.store.folder)
        with whole_file(path) as beside:
            beside.write_text(json.dumps(asdict(found), indent=2))
        return found

    def probe_path(self, uri: str, image_size: int) -> Path:
        """Where the probe of that source at that size is kept."""
        name = hashlib.sha256(uri.encode()).hexdigest()[:12]
        return self.folder / f"probe-{name}-{image_size}.safetensors"


def run_trial(
    material: Material, recipe: Recipe, folder: Path
) -> Generator[FitEvent, bool | None, None]:
    """Events of the trial; before the last two, its model folder is written to `folder`/model.

    Answer an event with True to stop: what was best until then becomes the model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Of an attempt whose process was killed: the model's folder goes to the server as it is.
    for below in (folder, folder / MODEL):
        remove_abandoned(below)
    device = material.device
    arithmetic = Arithmetic(recipe.precision, device.type)
    source = material.source(recipe.source)
    task = TASKS[material.task]
    network, preprocessing = network_at(material, source, recipe.image_size, recipe.seed)
    frame = material.frame(preprocessing)
    start = None
    if recipe.head_start == "probe":
        head = HeadStart.load(material.probe_path(recipe.source, recipe.image_size))
        head.copy_into(network.head)
        start = head.evidence
    validations = (0 if recipe.is_probe else recipe.epochs) + (start is None)
    try:
        batches, chosen = yield from _batches(
            material, recipe, network, source, preprocessing, arithmetic, validations
        )
        told = fit(
            network,
            recipe,
            batches,
            task,
            frame,
            Checkpoints(folder),
            arithmetic,
            device,
            start,
        )
        fitted = yield from _pictured(told, task, frame, folder)
    except torch.OutOfMemoryError as error:
        raise TrialError(
            f"out of memory at depth {recipe.depth} with batches of {recipe.batch_size} images of "
            f"{recipe.image_size} pixels. Lower --batch-size or --image-size."
        ) from error
    np.save(folder / EVIDENCE, fitted.evidence)
    state_dict = {k: v.detach().cpu() for k, v in network.model.state_dict().items()}
    config = ModelConfig(
        task=material.task,
        architecture=source.architecture,
        preprocessing=preprocessing,
        classes=material.manifest.classes,
        calibration=task.judging.calibrated(fitted.evidence, batches.validated, frame),
        source=recipe.source,
        weights_sha256=weights.digest(state_dict),
    )
    model_folder.write(folder / MODEL, config, state_dict)
    for chain in (batches.train, batches.valid):
        chain.flush()
    taken = batches.train.seconds + batches.valid.seconds
    had_room = batches.train.had_room and batches.valid.had_room
    yield RoadTravelled(chosen.stage, chosen.seconds, taken, had_room)
    yield fitted.ended


def _pictured(
    told: Generator[FitEvent, bool | None, Fitted], task: Task, frame: Frame, folder: Path
) -> Generator[FitEvent, bool | None, Fitted]:
    """The same events, but answers as pictures, or left out where a picture would not tell them."""
    answer: bool | None = None
    while True:
        try:
            event = told.send(answer)
        except StopIteration as end:
            fitted: Fitted = end.value
            return fitted
        if not isinstance(event, Answered):
            answer = yield event
        elif task.judging.pictures_tell:
            calibration = task.judging.calibrated(event.evidence, event.samples, frame)
            calibrated = replace(frame, calibration=calibration)
            drawn = (
                task.judging.drawing(sample, said, calibrated)[0]
                for sample, said in zip(event.samples, event.answers, strict=False)
            )
            path = folder / f"predictions-{event.epoch:04d}.jpg"
            with whole_file(path) as beside:
                beside.write_bytes(stacked(list(drawn)))
            answer = yield Pictured(event.epoch, path, time.time_ns() // 1_000_000)
        else:
            answer = None


def _batches(
    material: Material,
    recipe: Recipe,
    network: StagedNetwork,
    source: SourceModel,
    preprocessing: Preprocessing,
    arithmetic: Arithmetic,
    validations: int,
) -> Generator[FitEvent, bool | None, tuple[ChainBatches, RoadChosen]]:
    """Batches from where the planner has them start, once what they read is in the store.

    validations: how often the validation side will be asked for.
    """
    road = Road(network, source.weights_sha256, preprocessing, arithmetic, material.device)
    # The validation side is judged in float32, as the model will be used.
    exact = replace(road, arithmetic=Arithmetic("float32", material.device.type))
    changed = recipe.augmentation != "none"
    views = Views(recipe.augmentation, recipe.seed) if changed else AS_THEY_ARE
    point = network.full_depth - recipe.depth
    epochs = 0 if recipe.is_probe else recipe.epochs

    def planned(
        split: Split, one: Road, its_views: Views, numbers: range, passes: int
    ) -> tuple[Chain, Choice]:
        samples = material.manifest.side(split)
        need = Need(point, len(samples), passes, numbers)
        prices = material.prices(one, samples, its_views)
        return planner.planned_chain(
            samples, one, its_views, material.store, need, prices, reuse=material.reuse
        )

    train, from_train = planned("train", road, views, recipe.view_numbers, epochs)
    valid, from_valid = planned("valid", exact, AS_THEY_ARE, range(1), validations)
    stage = network.stages[from_train.start - 1].name if from_train.start else None
    chosen = RoadChosen(stage, from_train.seconds + from_valid.seconds)
    yield chosen
    # What is never read is not filled at all.
    starts = [(valid, from_valid.start)] if validations else []
    if epochs and not changed:
        starts.append((train, from_train.start))
    elif (
        epochs
        and from_train.keeps_pixels
        and not from_train.below
        and any(len(train.absent(view, from_train.start)) for view in recipe.view_numbers)
    ):
        # Views come into the store as epochs take them, from pixels: a trial that is pruned needs
        # few.
        starts.append((train, 0))
    for chain, start in starts:
        for done, total in chain.fill(start):
            if (yield StoreFilled(done, total)):
                break
    batches = ChainBatches(
        train,
        valid,
        TASKS[material.task].learning,
        material.frame(preprocessing),
        point,
        recipe.view_numbers,
        recipe.batch_size,
        recipe.seed,
    )
    return batches, chosen


def network_at(
    material: Material, source: SourceModel, image_size: int | None, seed: int = 0
) -> tuple[StagedNetwork, Preprocessing]:
    """The source's network for the study's classes on its device, and its preprocessing there.

    image_size: None for what suits the images; seed: of the new head.
    """
    building, manifest = TASKS[material.task].building, material.manifest
    with keyed(seed, "head"):
        network = building.network(source, len(manifest.classes))
    network.model.to(device=material.device).to(memory_format=torch.channels_last)
    return network, building.preprocessing(source, manifest.samples, image_size)


@lru_cache(maxsize=4)
def source_of(uri: str, fetched: Path | None) -> SourceModel:
    """The source of that URI; the last few are kept. fetched: its folder, if a server has it."""
    return resolve(uri, fetched)
