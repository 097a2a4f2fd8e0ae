"""The probe says whether images may be mirrored."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from sft_mlflow.data import pixels
from sft_mlflow.data.canvas import Canvas
from sft_mlflow.data.loading import load_manifest
from sft_mlflow.data.manifest import Sample
from sft_mlflow.data.pixels import PixelSpec
from sft_mlflow.data.truth import Box, Mask, TaskName
from sft_mlflow.options import EMBEDDED_SOURCE
from sft_mlflow.reuse.chain import Road
from sft_mlflow.reuse.store import Store
from sft_mlflow.tasks import TASKS
from sft_mlflow.training import mirroring, probing
from sft_mlflow.training.head_start import HeadStart
from sft_mlflow.training.mirroring import judge, mirrored, of_mirrored
from sft_mlflow.training.prepare import Prepared, prepare
from sft_mlflow.training.probing import Probed
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


def prepared(material: Material, size: int, **changes: Any) -> Prepared:
    """With the augmentation left open."""
    metric = TASKS[material.task].judging.metrics[0]
    return prepare(
        material,
        replace(SHARED, metric=metric, **changes),
        image_size=size,
        augmentation=None,
        precision="float32",
        progress=lambda what, done, total: None,
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
    found = prepared(material_of(data, "classification", tmp_path), 32)
    assert found.metrics["valid/accuracy"] == 1
    assert found.augmentation == expected


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def mirror_file(sample: Sample, folder: Path) -> Sample:
    """The sample mirrored on disk, with what is true of it."""

    def turned(path: Path, name: str) -> Path:
        target = folder / f"{name}-{path.name}"
        with Image.open(path) as image:
            ImageOps.mirror(image).save(target)
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


def draw_discs(root: Path) -> str:
    """Bright discs on dark ground and their masks, the same from either side."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number in range(40):
        centre = generator.integers(16, 48, 2)
        mask = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 100
        pixels = generator.integers(0, 60, (64, 64, 3), np.uint8)
        pixels[mask] += 150
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
        Image.fromarray(mask.astype(np.uint8)).save(root / "masks" / f"{number}.png")
    return str(root)


def test_pictures_with_masks_are_mirrored_where_it_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "LEAST_STEPS", 30)
    material = material_of(draw_discs(tmp_path / "discs"), "segmentation", tmp_path)
    found = prepared(material, 64)
    assert found.metrics["valid/miou"] > 0.7
    assert found.augmentation == "natural"
    # Nobody is there to ask.
    assert prepared(material, 64, head_start="random").augmentation == "light"


@pytest.mark.parametrize(
    ("task", "least"), [pytest.param("detection", 0.05), pytest.param("segmentation", 0.1)]
)
def test_answers_to_mirrored_files_are_those_to_the_files_mirrored(
    task: TaskName,
    least: float,
    tmp_path: Path,
    digits_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probing, "LEAST_STEPS", 45)
    whole = material_of("digits", task, tmp_path, digits_cache)
    sides = whole.manifest.side("train")[:24], whole.manifest.side("valid")[:8]
    material = replace(whole, manifest=replace(whole.manifest, samples=sides[0] + sides[1]))
    metric = TASKS[task].judging.metrics[0]
    found = prepared(material, 96)
    assert found.metrics[f"valid/{metric}"] > least

    turned = tuple(mirror_file(sample, tmp_path) for sample in sides[1])
    source = material.source(SHARED.source)
    network, preprocessing = network_at(material, source, 96)
    probe = HeadStart.load(material.probe_path(SHARED.source, 96))
    probe.copy_into(network.head)
    road = Road(network, source.weights_sha256, preprocessing, FLOAT32, CPU)

    def of(side: Sequence[Sample]) -> float | None:
        return of_mirrored(material, road, side, metric, lambda done, total: None, None)

    plain = found.metrics[f"valid/{metric}"]
    # Mirrored twice they are as they were.
    assert of(turned) == pytest.approx(plain, rel=0.01)
    # A digit in the mirror is another one, or none.
    assert (of(sides[1]) or 0) < plain


@pytest.fixture
def stripes(tmp_path: Path) -> tuple[Material, Road]:
    """Stripes, all for validation, and a network that knows nothing of them."""
    data = draw_stripes(tmp_path / "stripes", slanted=False)
    drawn = material_of(data, "classification", tmp_path)
    samples = [replace(one, split="valid") for one in drawn.manifest.samples]
    material = replace(drawn, manifest=replace(drawn.manifest, samples=tuple(samples)))
    source = material.source(SHARED.source)
    network, preprocessing = network_at(material, source, 32)
    return material, Road(network, source.weights_sha256, preprocessing, FLOAT32, CPU)


def probed(material: Material, right: int) -> Probed:
    """A probe whose answers to so many of the forty images are right."""
    side = material.manifest.side("valid")
    of = [material.manifest.classes.index(sample.label) for sample in side]
    logits = np.eye(2, dtype=np.float32)[of]
    logits[right:] = 1 - logits[right:]
    return Probed(HeadStart({}, logits), side, logits, {"accuracy": right / 40})


def test_a_budget_that_is_used_up_answers_no(stripes: tuple[Material, Road]) -> None:
    told: list[int] = []
    late = time.monotonic() - 1
    perfect = probed(stripes[0], right=40)
    verdict = judge(*stripes, perfect, "accuracy", lambda done, total: told.append(done), late)
    assert not verdict.is_harmless
    assert "no time" in verdict.because


def test_answers_come_in_several_batches(
    stripes: tuple[Material, Road], monkeypatch: pytest.MonkeyPatch
) -> None:
    material, road = stripes
    side = material.manifest.side("valid")

    def ask() -> float | None:
        return of_mirrored(material, road, side, "accuracy", lambda done, total: None, None)

    whole = ask()
    monkeypatch.setattr(pixels, "_TOGETHER", 8)
    assert ask() == whole


def test_a_picture_is_mirrored_where_it_lies_on_its_canvas() -> None:
    there = torch.zeros(2, 32, 64, 3, dtype=torch.uint8)
    # One fills the canvas, one the left half of it; both are brighter from left to right.
    there[0] += torch.arange(64, dtype=torch.uint8)[None, :, None]
    there[1, :, :32] += torch.arange(1, 33, dtype=torch.uint8)[None, :, None]
    spec = PixelSpec(64, "bilinear", Canvas(32, 64))
    found = mirrored(there, [(64, 32), (100, 100)], spec)
    assert found[0, 0, :, 0].tolist() == list(range(63, -1, -1))
    assert found[1, 0, :, 0].tolist() == [*range(32, 0, -1), *[0] * 32]


@pytest.mark.parametrize(
    ("right", "there", "expected", "because"),
    [
        # Half of it is luck: what is lost of the rest counts.
        (21, 0.515, False, "are not mirrored"),
        (20, 0.5, False, "knows too little"),
        (40, 0.985, True, "are mirrored"),
        (40, 0.97, False, "are not mirrored"),
    ],
)
def test_what_the_probe_loses_of_what_it_knows_decides(
    right: int,
    there: float,
    expected: bool,
    because: str,
    stripes: tuple[Material, Road],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mirroring, "of_mirrored", lambda *args: there)
    known = probed(stripes[0], right)
    verdict = judge(*stripes, known, "accuracy", lambda done, total: None, None)
    assert verdict.is_harmless == expected
    assert because in verdict.because


def test_of_many_images_some_are_asked_about_whatever_their_order(
    stripes: tuple[Material, Road], monkeypatch: pytest.MonkeyPatch
) -> None:
    material, road = stripes
    monkeypatch.setattr(mirroring, "MOST_IMAGES", 3)
    seen = []

    def asked_about(material: Material, road: Road, samples: Sequence[Sample], *rest: Any) -> None:
        seen.append({sample.digest for sample in samples})

    monkeypatch.setattr(mirroring, "of_mirrored", asked_about)
    turned = replace(
        material, manifest=replace(material.manifest, samples=material.manifest.samples[::-1])
    )
    for one in (material, turned):
        known = probed(one, right=40)
        judge(one, road, known, "accuracy", lambda done, total: None, None)
    assert len(seen[0]) == 3
    assert seen[0] == seen[1]
