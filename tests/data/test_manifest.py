from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sft_mlflow.data.loading import load_manifest
from sft_mlflow.data.manifest import Manifest, Sample, digest_of

FolderOf = Callable[..., Path]


def digest(root: Path, cache: Path, seed: int = 0) -> str:
    return load_manifest(str(root), cache=cache, seed=seed).manifest.digest


def test_the_digest_is_the_same_after_moving_copying_and_renaming(
    folder_of: FolderOf, tmp_path: Path
) -> None:
    root = folder_of()
    first = digest(root, tmp_path)
    assert digest(shutil.copytree(root, tmp_path / "copy"), tmp_path) == first
    moved = root.rename(tmp_path / "elsewhere")
    for number, path in enumerate(sorted((moved / "cat").iterdir(), reverse=True)):
        path.rename(path.with_name(f"renamed-{number}.png"))
    assert digest(moved, tmp_path) == first


@pytest.mark.parametrize("change", ["add", "remove", "relabel", "duplicate", "edit"])
def test_the_digest_changes_with_the_samples_and_their_labels(
    folder_of: FolderOf, tmp_path: Path, change: str
) -> None:
    root = folder_of()
    first = digest(root, tmp_path)
    one, other = sorted((root / "cat").iterdir())[:2]
    if change == "add":
        folder_of(("cat",), images=1, seed=77)
    elif change == "remove":
        one.unlink()
    elif change == "relabel":
        one.rename(root / "dog" / one.name)
    elif change == "duplicate":
        shutil.copy(one, root / "cat" / "again.png")
    else:
        one.write_bytes(other.read_bytes())
    assert digest(root, tmp_path) != first


def test_the_digest_changes_with_the_split(folder_of: FolderOf, tmp_path: Path) -> None:
    root = folder_of()
    assert digest(root, tmp_path, seed=0) != digest(root, tmp_path, seed=1)


@pytest.mark.parametrize("seed", range(5))
def test_the_digest_does_not_depend_on_the_order(seed: int) -> None:
    samples = [
        Sample(Path(f"/{n}"), "ab"[n % 2], f"{n:064x}", ("train", "valid", "test")[n % 3])
        for n in range(20)
    ]
    shuffled = random.Random(seed).sample(samples, len(samples))
    assert digest_of(shuffled) == digest_of(samples)


def test_no_label_can_pass_for_another_sample() -> None:
    one = Sample(Path("/a"), "x", "0" * 64, "train")
    other = Sample(Path("/b"), "y", "1" * 64, "train")
    forged = replace(one, truth=f"x\n{other.digest}\t{other.split}\t{other.label}")
    assert digest_of([forged]) != digest_of([one, other])


def test_sides_and_counts_add_up() -> None:
    samples = (
        Sample(Path("/a"), "x", "0" * 64, "train"),
        Sample(Path("/b"), "y", "1" * 64, "test"),
        Sample(Path("/c"), "x", "2" * 64, "train"),
    )
    manifest = Manifest("m", "u", samples, ("x", "y"))
    assert manifest.side("train") == (samples[0], samples[2])
    assert manifest.counts("train") == {"x": 2, "y": 0}
    assert manifest.counts("valid") == {"x": 0, "y": 0}
