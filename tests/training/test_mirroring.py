"""The probe says whether images may be mirrored."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from sft_mlflow.data.canvas import Canvas
from sft_mlflow.data.loading import load_manifest
from sft_mlflow.data.manifest import Sample
from sft_mlflow.data.pixels import PixelSpec
from sft_mlflow.data.truth import Box, Mask, TaskName
from sft_mlflow.options import EMBEDDED_SOURCE
from sft_mlflow.reuse.chain import Road
from sft_mlflow.reuse.store import Store
from sft_mlflow.tasks import TASKS
from sft_mlflow.training import probing
from sft_mlflow.training.head_start import HeadStart
from sft_mlflow.training.mirroring import mirrored, value_when_mirrored
from sft_mlflow.training.prepare import Prepared, prepare
from sft_mlflow.training.recipe import Augmentation
from sft_mlflow.training.trial import Material, network_at
from tests.recipes import RECIPE

from .conftest import CPU, FLOAT32

SHARED = replace(
    RECIPE,
    source=EMBEDDED_SOURCE,
    epochs=4,
    batch_size=8,
    head_start="probe",
    label_smoothing=0.0,
    views=1,
)


def material_of(data: str, task: TaskName, folder: Path, cache: Path | None = None) -> Material:
    manifest = load_manifest(data, task=task, cache=cache or folder / "data").manifest
    (folder / "study").mkdir()
    store = Store(folder / "store", budget_bytes=10**9)
    return Material(task, manifest, folder / "study", CPU, {}, store, reuse=True)


def prepared(material: Material, size: int, augmentation: Augmentation | None) -> Prepared:
    return prepare(
        material,
        replace(SHARED, metric=TASKS[material.task].judging.metrics[0]),
        image_size=size,
        augmentation=augmentation,
        precision="float32",
        progress=lambda done, total: None,
    )


def draw_stripes(root: Path, *, slanted: bool) -> str:
    """Classes of stripes: lying and standing ones, or rising and falling, as mirrors turn them."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    for name, across in (("first", y + x if slanted else y), ("second", y - x if slanted else x)):
        (root / name).mkdir(parents=True)
        for number in range(20):
            lit = (across + number) // 4 % 2 * 150
            noise = generator.integers(0, 60, (32, 32, 3))
            pixels = (lit[..., None] + noise).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return str(root)


@pytest.mark.parametrize(("slanted", "expected"), [(False, "natural"), (True, "light")])
def test_images_are_mirrored_only_where_that_keeps_their_class(
    slanted: bool, expected: Augmentation, tmp_path: Path
) -> None:
    data = draw_stripes(tmp_path / "stripes", slanted=slanted)
    found = prepared(material_of(data, "classification", tmp_path), 32, None)
    assert found.metrics["valid/accuracy"] == 1
    assert found.augmentation == expected


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def mirror_file(sample: Sample, folder: Path) -> Sample:
    """The sample mirrored on disk, with what is true of it."""

    def turned(path: Path, name: str) -> Path:
        target = folder / f"{name}-{path.name}"
        with Image.open(path) as image:
            turned = ImageOps.mirror(image)
            turned.save(target)
        return target

    truth, width = sample.truth, sample.width
    if isinstance(truth, Mask):
        path = turned(truth.path, "mask")
        truth = replace(truth, path=path, digest=sha256(path))
    elif not isinstance(truth, str):
        truth = tuple(
            Box(box.label, width - box.xmax, box.ymin, width - box.xmin, box.ymax) for box in truth
        )
    path = turned(sample.path, "image")
    return replace(sample, path=path, digest=sha256(path), truth=truth)


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_files_that_are_mirrored_are_found_again_by_mirroring_them(
    task: TaskName,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probing, "LEAST_STEPS", 45)
    whole = material_of("digits", task, tmp_path, tmp_path_factory.getbasetemp() / "tasks")
    sides = whole.manifest.side("train")[:24], whole.manifest.side("valid")[:8]
    material = replace(whole, manifest=replace(whole.manifest, samples=sides[0] + sides[1]))
    metric = TASKS[task].judging.metrics[0]
    value = prepared(material, 96, "none").metrics[f"valid/{metric}"]
    assert value > 0
    turned = tuple(mirror_file(sample, tmp_path) for sample in sides[1])
    head = HeadStart.load(material.probe_path(SHARED.source, 96))
    source = material.source(SHARED.source)
    network, preprocessing = network_at(material, source, 96)
    road = Road(network, source.weights_sha256, preprocessing, FLOAT32, CPU)
    of_turned = replace(material, manifest=replace(material.manifest, samples=sides[0] + turned))
    assert value_when_mirrored(of_turned, road, head, metric) == pytest.approx(value, abs=1e-3)
    assert value_when_mirrored(material, road, head, metric) < 0.99 * value


def test_a_picture_is_mirrored_where_it_lies_on_its_canvas() -> None:
    pixels = torch.zeros(2, 32, 64, 3, dtype=torch.uint8)
    # One fills the canvas, one the left half of it; both are brighter from left to right.
    pixels[0] += torch.arange(64, dtype=torch.uint8)[None, :, None]
    pixels[1, :, :32] += torch.arange(1, 33, dtype=torch.uint8)[None, :, None]
    spec = PixelSpec(64, "bilinear", Canvas(32, 64))
    found = mirrored(pixels, [(64, 32), (100, 100)], spec)
    assert found[0, 0, :, 0].tolist() == list(range(63, -1, -1))
    assert found[1, 0, :, 0].tolist() == [*range(32, 0, -1), *[0] * 32]
