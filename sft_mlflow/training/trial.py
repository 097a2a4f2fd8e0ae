"""One trial from its recipe to its model folder, and what all trials of a study share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sft_mlflow.data.manifest import Manifest, Split
from sft_mlflow.data.pixels import PixelSpec, pixel_table
from sft_mlflow.errors import TrialError
from sft_mlflow.sources import model_folder, weights
from sft_mlflow.sources.model_folder import ModelConfig
from sft_mlflow.sources.network import StagedNetwork, network_from
from sft_mlflow.sources.source_model import Preprocessing, SourceModel
from sft_mlflow.sources.uri import resolve
from sft_mlflow.tasks import TASKS
from sft_mlflow.tasks.classification import calibration
from sft_mlflow.training.batches import LiveBatches, Side
from sft_mlflow.training.events import FitEvent
from sft_mlflow.training.fit import fit, predict
from sft_mlflow.training.precision import Arithmetic
from sft_mlflow.training.probe import Probe
from sft_mlflow.training.randomness import keyed
from sft_mlflow.training.recipe import Recipe

# Called with (done, in all).
Progress = Callable[[int, int], None]

MODEL = "model"
VALIDATION_OUTPUTS = "validation.npy"


@dataclass(frozen=True)
class Material:
    """What trials are made of. fetched: local folders of sources from a tracking server."""

    task: str
    manifest: Manifest
    folder: Path
    device: torch.device
    fetched: dict[str, Path]

    def source(self, uri: str) -> SourceModel:
        """The source of that URI, read once."""
        return source_of(uri, self.fetched.get(uri))

    def side(
        self, split: Split, preprocessing: Preprocessing, progress: Progress | None = None
    ) -> Side:
        """Pixels and class indices of one side, for sources with that preprocessing."""
        samples = self.manifest.side(split)
        spec = PixelSpec(preprocessing.size, preprocessing.interpolation)
        index = {name: i for i, name in enumerate(self.manifest.classes)}
        targets = np.array([index[sample.label] for sample in samples], np.int64)
        return Side(pixel_table(samples, spec, self.folder / "pixels", progress), targets)

    def probe_path(self, uri: str, image_size: int) -> Path:
        """Where the probe of that source at that size is kept."""
        name = hashlib.sha256(uri.encode()).hexdigest()[:12]
        return self.folder / f"probe-{name}-{image_size}.safetensors"


def run_trial(
    material: Material, recipe: Recipe, folder: Path
) -> Generator[FitEvent, bool | None, None]:
    """Events of the trial; before the last one, its model folder is written to `folder`/model.

    Answer an event with True to stop: what was best until then becomes the model.
    """
    device = material.device
    arithmetic = Arithmetic(recipe.precision, device.type)
    task = TASKS[material.task]
    source = material.source(recipe.source)
    network, preprocessing = network_at(material, source, recipe.image_size)
    _start_head(material, network, recipe)
    batches = LiveBatches(
        train=material.side("train", preprocessing),
        valid=material.side("valid", preprocessing),
        prefix=network.prefix(recipe.depth),
        preprocessing=preprocessing,
        augmentation=recipe.augmentation,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        device=device,
        arithmetic=arithmetic,
    )
    try:
        ended = yield from fit(
            network, recipe, batches, task, material.manifest.classes, folder, arithmetic, device
        )
    except torch.OutOfMemoryError as error:
        raise TrialError(
            f"out of memory at depth {recipe.depth} with batches of {recipe.batch_size} images of "
            f"{recipe.image_size} pixels. Lower --batch-size or --image-size."
        ) from error
    outputs, targets = predict(network.suffix(recipe.depth), batches)
    np.save(folder / VALIDATION_OUTPUTS, outputs)
    state_dict = {k: v.detach().cpu() for k, v in network.model.state_dict().items()}
    config = ModelConfig(
        task=material.task,
        architecture=source.architecture,
        preprocessing=preprocessing,
        classes=material.manifest.classes,
        temperature=calibration.fit_temperature(outputs, targets),
        source=recipe.source,
        weights_sha256=weights.digest(state_dict),
    )
    model_folder.write(folder / MODEL, config, state_dict)
    yield ended


def network_at(
    material: Material, source: SourceModel, image_size: int
) -> tuple[StagedNetwork, Preprocessing]:
    """The source's network for the study's classes on its device, and its preprocessing there."""
    network = network_from(source, len(material.manifest.classes))
    network.model.to(device=material.device).to(memory_format=torch.channels_last)
    own = source.preprocessing
    return network, Preprocessing(image_size, own.interpolation, own.mean, own.std)


def _start_head(material: Material, network: StagedNetwork, recipe: Recipe) -> None:
    if recipe.head_start == "probe":
        Probe.load(material.probe_path(recipe.source, recipe.image_size)).copy_into(network.head)
        return
    with keyed(recipe.seed, "head"):
        fresh = nn.Linear(network.head.in_features, network.head.out_features)
    network.head.load_state_dict(fresh.state_dict())


@lru_cache(maxsize=4)
def source_of(uri: str, fetched: Path | None) -> SourceModel:
    """The source of that URI, read once. fetched: its folder, if a tracking server has it."""
    return resolve(uri, fetched)
