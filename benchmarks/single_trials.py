"""Single trials without a study: for benchmarks of recipes, of the planner and of fixed costs."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import torch

from sft_mlflow import runtime
from sft_mlflow.commands.settling import recipe_of as recipe_of_study
from sft_mlflow.commands.settling import shared_recipe
from sft_mlflow.data.loading import load_manifest
from sft_mlflow.data.manifest import Manifest, Split
from sft_mlflow.data.truth import TaskName
from sft_mlflow.options import EMBEDDED_SOURCE, FinetuneOptions, parse
from sft_mlflow.reuse.store import Store
from sft_mlflow.tasks import TASKS
from sft_mlflow.training.events import FitEnded
from sft_mlflow.training.prepare import Prepared, prepare
from sft_mlflow.training.recipe import Recipe
from sft_mlflow.training.trial import Material, run_trial


def made_ready(
    data: str,
    folder: Path,
    epochs: int,
    *,
    source: str = EMBEDDED_SOURCE,
    image_size: int | None = None,
    few: tuple[int, int] | None = None,
    reuse: bool = True,
    with_probe: bool = True,
    task: TaskName = "classification",
    ignored: frozenset[str] = frozenset(),
) -> tuple[Material, Prepared]:
    """What trials need, below the folder.

    few: training images a class, and other images; None for the sides that the data have.
    """
    # Memory is kept as the command line keeps it.
    runtime.tune()
    loaded = load_manifest(data, task=task, cache=folder / "data", ignored=ignored)
    manifest = loaded.manifest if few is None else fewer(loaded.manifest, *few)
    store = Store(folder / "store", budget_bytes=50 * 10**9)
    cpu = torch.device("cpu")
    material = Material(task, manifest, folder, cpu, {}, store, reuse)
    start = "probe" if with_probe else "random"
    options = parse(FinetuneOptions, {"epochs": epochs, "head_start": start})
    prepared = prepare(
        material,
        replace(shared(options, task), source=source),
        image_size=image_size,
        augmentation=None,
        precision=None,
        progress=lambda what, done, total: None,
    )
    return material, prepared


def shared(options: FinetuneOptions, task: TaskName) -> Recipe:
    """What trials have in common: the task's first metric, and classes that count the same."""
    return shared_recipe(options, task, TASKS[task].judging.metrics[0], None)


def fewer(manifest: Manifest, train_per_class: int, validate: int) -> Manifest:
    """That many training images of each class, by digest, and others of them to judge by."""
    taken: Counter[str] = Counter()
    samples = []
    others = 0
    known = [sample for sample in manifest.samples if sample.split != "test"]
    for sample in sorted(known, key=lambda sample: sample.digest):
        split: Split = "train" if taken[sample.label] < train_per_class else "valid"
        taken[sample.label] += split == "train"
        others += split == "valid"
        if split == "train" or others <= validate:
            samples.append(replace(sample, split=split))
    return replace(manifest, samples=tuple(samples))


def recipe_of(
    text: str,
    prepared: Prepared,
    epochs: int,
    seed: int = 0,
    task: TaskName = "classification",
) -> Recipe:
    """The recipe that `finetune` would take, but for the fields that the text names."""
    options = parse(FinetuneOptions, {"epochs": epochs, "patience": epochs, "seed": seed})
    of_study = recipe_of_study(options, shared(options, task), prepared)
    recipe = replace(of_study, depth=prepared.full_depth, lr=1e-3, views=epochs)
    given = dict(field.split("=", 1) for field in text.split())
    kinds = {name: type(value) for name, value in asdict(recipe).items()}
    return replace(recipe, **{name: kinds[name](value) for name, value in given.items()})


def trial(material: Material, recipe: Recipe, folder: Path) -> tuple[float, float]:
    """The objective of the trial's best epoch, and its seconds."""
    shutil.rmtree(folder, ignore_errors=True)
    begun = time.perf_counter()
    *_, ended = run_trial(material, recipe, folder)
    assert isinstance(ended, FitEnded)
    return ended.value, time.perf_counter() - begun
