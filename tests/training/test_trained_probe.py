"""The probe of a head that is not linear: the trial of depth 0, trained once."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sft_mlflow.data.loading import load_manifest
from sft_mlflow.data.manifest import Manifest, Sample
from sft_mlflow.reuse.store import Store
from sft_mlflow.training import mirroring, probing
from sft_mlflow.training.events import EpochEnded
from sft_mlflow.training.head_start import HeadStart
from sft_mlflow.training.prepare import Prepared, prepare
from sft_mlflow.training.recipe import Augmentation
from sft_mlflow.training.trial import Material, run_trial
from tests.recipes import RECIPE

SHARED = replace(
    RECIPE, batch_size=8, epochs=1, metric="miou", head_start="probe", label_smoothing=0.0, views=1
)


@pytest.fixture
def material(tmp_path: Path, digits_cache: Path) -> Material:
    whole = load_manifest("digits", task="segmentation", cache=digits_cache).manifest
    folder = tmp_path / "study"
    folder.mkdir()
    store = Store(tmp_path / "store", budget_bytes=10**9)
    cpu = torch.device("cpu")
    manifest = replace(whole, samples=few(whole, 16))
    return Material("segmentation", manifest, folder, cpu, {}, store, reuse=True)


def prepared(
    material: Material,
    deadline: float | None = None,
    augmentation: Augmentation | None = "none",
) -> tuple[list[tuple[int, int]], Prepared]:
    """The epochs that it told of, and what came out."""
    told: list[tuple[int, int]] = []

    def tell(what: str, done: int, total: int) -> None:
        if "probe" in what:
            told.append((done, total))

    found = prepare(
        material,
        replace(SHARED, epochs=4),
        image_size=64,
        augmentation=augmentation,
        precision="float32",
        progress=tell,
        deadline=deadline,
    )
    return told, found


def test_it_takes_its_steps_however_few_epochs_a_trial_has(
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "LEAST_STEPS", 12)
    # Two batches an epoch, so six epochs, though a trial has one and patience for one.
    assert prepared(material)[0][-2:] == [(6, 6), (6, 6)]


def test_a_head_with_batchnorm_has_a_probe_from_batches_of_one(
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "LEAST_STEPS", 4)
    uri = "torchvision://lraspp_mobilenet_v3_large/random"
    told: list[tuple[int, int]] = []
    # Counted anew from one image, the statistics of pooled features would be none.
    prepare(
        replace(material, manifest=replace(material.manifest, samples=few(material.manifest, 4))),
        replace(SHARED, source=uri, batch_size=1),
        image_size=64,
        augmentation="none",
        precision="float32",
        progress=lambda what, done, total: told.append((done, total)) if "probe" in what else None,
    )
    # Four images are four steps.
    assert told[:2] == [(0, 1), (1, 1)]
    assert material.probe_path(uri, 64).exists()


def few(manifest: Manifest, each: int) -> tuple[Sample, ...]:
    return tuple(s for side in ("train", "valid", "test") for s in manifest.side(side)[:each])  # type: ignore[arg-type]


def test_trials_start_with_it_and_from_its_figures(
    material: Material, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(probing, "LEAST_STEPS", 8)
    prepared(material)
    head = HeadStart.load(material.probe_path(SHARED.source, 64))
    assert head.evidence is not None
    recipe = replace(SHARED, image_size=64, depth=0, lr=None)
    epochs = [e for e in run_trial(material, recipe, tmp_path / "t") if isinstance(e, EpochEnded)]
    assert [epoch.epoch for epoch in epochs] == [0]
    deeper = replace(recipe, depth=2, lr=1e-3)
    first = next(
        e for e in run_trial(material, deeper, tmp_path / "d") if isinstance(e, EpochEnded)
    )
    assert first.value == epochs[0].value
    # Only the head is left of its training.
    assert not material.probe_path(SHARED.source, 64).with_suffix("").exists()


def test_a_kill_before_all_is_settled_does_not_cost_its_steps(
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(probing, "LEAST_STEPS", 8)
    with monkeypatch.context() as patch:
        patch.setattr(mirroring, "judge", killed)
        with pytest.raises(KeyboardInterrupt):
            prepared(material, augmentation=None)
    steps = list[object]()
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *args: steps.append(args))
    prepared(material)
    assert steps == []


def test_a_deadline_stops_it_and_leaves_a_head(material: Material) -> None:
    told, found = prepared(material, deadline=time.monotonic() - 1)
    assert {done for done, total in told[:-1] if done < total} <= {0, 1}
    assert HeadStart.load(material.probe_path(SHARED.source, 64)).tensors
    assert found.remarks == ["the budget stopped the probe after 0 of 150 epochs"]
