from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sft_mlflow.data.manifest import Manifest, Sample, Split
from sft_mlflow.data.scan import scan
from sft_mlflow.reuse import planner
from sft_mlflow.reuse.chain import Road
from sft_mlflow.reuse.planner import Choice
from sft_mlflow.reuse.store import Store
from sft_mlflow.sources.model_folder import is_model_folder, read_config, read_weights
from sft_mlflow.tasks.predictor import Predictor
from sft_mlflow.training.checkpoints import NAME
from sft_mlflow.training.events import FitEnded, RoadChosen, StoreFilled
from sft_mlflow.training.probe import Probe
from sft_mlflow.training.recipe import Recipe
from sft_mlflow.training.trial import EVIDENCE, MODEL, Material, run_trial

from .conftest import RECIPE, Digits, Side


def material_of(digits: Digits, folder: Path, trained: tuple[str, ...]) -> Material:
    """The digits as files, with training images of the classes in `trained` alone."""
    samples = []
    sides: tuple[tuple[Split, Side], ...] = (("train", digits.train), ("valid", digits.valid))
    for split, side in sides:
        for row, (pixels, target) in enumerate(zip(side.pixels, side.targets, strict=True)):
            if split == "valid" or str(target) in trained:
                path = folder / f"{split}-{row}.png"
                Image.fromarray(pixels).save(path)
                samples.append(Sample(path, str(target), "", split))
    facts = scan([sample.path for sample in samples])
    digested = (
        replace(s, digest=f.digest, width=f.width, height=f.height)
        for s, f in zip(samples, facts, strict=True)
    )
    manifest = Manifest("digits", str(folder), tuple(digested), ("0", "1", "2"))
    cpu = torch.device("cpu")
    store = Store(folder / "store", budget_bytes=10**9)
    (folder / "study").mkdir()
    return Material("classification", manifest, folder / "study", cpu, {}, store, reuse=True)


@pytest.fixture(scope="module")
def material(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Material:
    return material_of(digits, tmp_path_factory.mktemp("all"), ("0", "1", "2"))


def trial(material: Material, folder: Path, **options: object) -> tuple[Recipe, FitEnded]:
    recipe = replace(RECIPE, epochs=1, **options)  # type: ignore[arg-type]
    events = list(run_trial(material, recipe, folder))
    assert isinstance(events[0], RoadChosen)
    ended = events[-1]
    assert isinstance(ended, FitEnded)
    return recipe, ended


def test_what_a_killed_attempt_left_half_written_is_not_in_the_model(
    material: Material, tmp_path: Path
) -> None:
    (tmp_path / MODEL).mkdir()
    left = [tmp_path / f".{NAME}.1.partial", tmp_path / MODEL / ".model.safetensors.1.partial"]
    for path in left:
        path.write_bytes(b"half")
    trial(material, tmp_path, depth=0)
    assert not any(path.exists() for path in left)
    assert is_model_folder(tmp_path / MODEL)


@pytest.mark.parametrize("depth", [0, 9, 18])
def test_a_trial_ends_in_a_model_that_answers_as_its_validation_did(
    depth: int, material: Material, digits: Digits, tmp_path: Path
) -> None:
    _, ended = trial(material, tmp_path, depth=depth)
    predictor = Predictor.load(tmp_path / MODEL)
    outputs = np.load(tmp_path / EVIDENCE)
    sizes = [(32, 32)] * len(digits.valid.pixels)
    answers = predictor.answers(digits.valid.pixels, sizes)
    logits = np.stack(answers) * predictor.config.calibration.temperature
    assert np.allclose(logits, outputs, rtol=1e-4, atol=1e-4)
    assert (logits.argmax(1) == digits.valid.targets).mean() == pytest.approx(ended.value)
    assert predictor.config.classes == ("0", "1", "2")
    assert predictor.config.preprocessing.size == 32
    # The checkpoint stays until the study knows that the trial is over.
    assert {path.name for path in tmp_path.iterdir()} == {MODEL, EVIDENCE, NAME}


def test_the_probe_as_a_trial_is_the_source_to_the_bit_with_the_probe_as_its_head(
    material: Material, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    probe = Probe(
        weight=generator.normal(size=(3, 1024)).astype(np.float32),
        bias=np.zeros(3, dtype=np.float32),
        valid=generator.normal(size=(len(material.manifest.side("valid")), 3)).astype(np.float32),
    )
    probe.as_start().save(material.probe_path(RECIPE.source, 32))
    trial(material, tmp_path, depth=0, lr=None, head_start="probe")
    # What the probe makes of the validation side is known, and not computed again.
    assert np.array_equal(np.load(tmp_path / EVIDENCE), probe.valid)
    found = read_weights(tmp_path / MODEL, read_config(tmp_path / MODEL))
    source = material.source(RECIPE.source).state_dict
    body = [name for name in source if not name.startswith("fc.")]
    assert all(torch.equal(found[name], source[name]) for name in body)
    assert np.array_equal(found["fc.weight"].numpy(), probe.weight)


def test_the_random_head_belongs_to_the_seed(material: Material, tmp_path: Path) -> None:
    heads = []
    for number, seed in enumerate((1, 1, 2)):
        folder = tmp_path / str(number)
        trial(material, folder, depth=0, seed=seed)
        heads.append(read_weights(folder / MODEL, read_config(folder / MODEL))["fc.weight"])
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_class_without_training_images_does_not_stop_a_trial(
    digits: Digits, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    few = material_of(digits, folder, ("0", "2"))
    trial(few, tmp_path / "trial", depth=9, class_weights=(1.0, 2.0, 1.0))
    predictor = Predictor.load(tmp_path / "trial" / MODEL)
    answers = predictor.answers(digits.valid.pixels, [(32, 32)] * 48)
    assert np.stack(answers).shape == (48, 3)


def test_a_trial_that_reads_activations_learns_what_one_that_computes_them_learns(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial(replace(material, reuse=False), tmp_path / "live", depth=9)
    material = replace(material, store=Store(tmp_path / "store", budget_bytes=10**9))
    # Which of the two is faster is not for a test to say.
    monkeypatch.setattr(planner, "choose", lambda need, *rest: Choice(need.point, 0, 0.0))
    events = list(run_trial(material, replace(RECIPE, epochs=1, depth=9), tmp_path / "stored"))
    assert isinstance(events[0], RoadChosen)
    assert events[0].stage is not None
    assert [e for e in events if isinstance(e, StoreFilled)]
    again = list(run_trial(material, replace(RECIPE, epochs=1, depth=9), tmp_path / "again"))
    assert not [e for e in again if isinstance(e, StoreFilled)]
    live, *others = (np.load(tmp_path / name / EVIDENCE) for name in ("live", "stored", "again"))
    for stored in others:
        assert np.allclose(stored, live, rtol=1e-3, atol=1e-3)


def test_a_trial_reads_the_views_that_an_earlier_one_has_kept(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "choose", lambda need, *rest: Choice(need.point, 0, 0.0))
    material = replace(material, store=Store(tmp_path / "store", budget_bytes=10**9))
    recipe = replace(RECIPE, depth=9, epochs=3, augmentation="natural", views=2, seed=3)
    run: list[int] = []
    segment = Road.segment

    def counting(road: Road, begin: int, end: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def function(values: torch.Tensor) -> torch.Tensor:
            # Single stages run for the planner's measuring.
            if end - begin > 1:
                run.append(len(values))
            return made(values)

        made = segment(road, begin, end)
        return function

    monkeypatch.setattr(Road, "segment", counting)
    list(run_trial(material, recipe, tmp_path / "first"))
    # Each training image once for each of its two views, each validation image once.
    assert sum(run) == 2 * 64 + 48
    run.clear()
    # Nor does it ask for pixels, kept or in files.
    for address in list(material.store.folder.rglob("address.json")):
        if "stage" not in json.loads(address.read_text()):
            shutil.rmtree(address.parent)
    gone = tuple(replace(s, path=tmp_path / "gone.png") for s in material.manifest.samples)
    elsewhere = replace(material, manifest=replace(material.manifest, samples=gone))
    list(run_trial(elsewhere, recipe, tmp_path / "second"))
    assert not run
    first, second = (np.load(tmp_path / name / EVIDENCE) for name in ("first", "second"))
    assert np.allclose(first, second, rtol=1e-3, atol=1e-3)
