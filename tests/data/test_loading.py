from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sft_mlflow.data.loading import load_manifest, read_manifest, save_manifest, survey
from sft_mlflow.errors import DataError

FolderOf = Callable[..., Path]


def test_every_sample_is_on_a_side_and_every_class_is_named(
    folder_of: FolderOf, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    loaded = load_manifest(
        str(folder_of(("b", "a", "c"))),
        cache=tmp_path,
        progress=lambda done, total: told.append((done, total)),
    )
    assert loaded.manifest.classes == ("a", "b", "c")
    assert len(loaded.manifest.samples) == 90
    assert all(sample.path.is_absolute() for sample in loaded.manifest.samples)
    assert told[-1] == (90, 90)


def test_broken_files_are_listed_with_their_reason(folder_of: FolderOf, tmp_path: Path) -> None:
    root = folder_of()
    (root / "dog" / "bad.png").touch()
    (broken,) = load_manifest(str(root), cache=tmp_path).broken
    assert (broken.path, broken.label, broken.kind) == (root / "dog" / "bad.png", "dog", "empty")
    assert broken.reason == "the file is empty"


def test_broken_files_can_be_an_error_that_names_them(folder_of: FolderOf, tmp_path: Path) -> None:
    root = folder_of()
    (root / "dog" / "bad.png").touch()
    with pytest.raises(DataError, match=r"1 of 61 files are broken[\s\S]*bad\.png"):
        load_manifest(str(root), cache=tmp_path, broken="error")


def test_a_saved_manifest_comes_back_as_it_was(folder_of: FolderOf, tmp_path: Path) -> None:
    manifest = load_manifest(str(folder_of()), cache=tmp_path).manifest
    path = tmp_path / "out" / "manifest.parquet"
    save_manifest(manifest, path)
    assert read_manifest(path) == manifest
    assert read_manifest(path).digest == manifest.digest
    assert [entry.name for entry in path.parent.iterdir()] == ["manifest.parquet"]


def test_a_saved_manifest_can_be_given_as_data(folder_of: FolderOf, tmp_path: Path) -> None:
    manifest = load_manifest(str(folder_of()), cache=tmp_path, seed=5).manifest
    path = tmp_path / "manifest.parquet"
    save_manifest(manifest, path)
    again = load_manifest(str(path), cache=tmp_path).manifest
    assert again.samples == manifest.samples
    assert again.digest == manifest.digest
    assert again.name == manifest.name


def test_groups_survive_saving(folder_of: FolderOf, tmp_path: Path) -> None:
    rows = ["path,label,group"]
    for number, path in enumerate(sorted(folder_of().rglob("*.png"))):
        rows.append(f"{path},{path.parent.name},{f'g{number % 20}' if number % 2 else ''}")
    table = tmp_path / "images.csv"
    table.write_text("\n".join(rows))
    manifest = load_manifest(str(table), cache=tmp_path).manifest
    save_manifest(manifest, tmp_path / "m.parquet")
    assert read_manifest(tmp_path / "m.parquet") == manifest
    assert {sample.group is None for sample in manifest.samples} == {True, False}


@pytest.mark.parametrize("content", [None, b"words"])
def test_what_is_no_saved_manifest_is_a_data_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "m.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"m\.parquet"):
        read_manifest(path)


def test_fewer_than_two_usable_classes_is_an_error_that_says_how_many(
    folder_of: FolderOf, tmp_path: Path
) -> None:
    root = folder_of(("cat",))
    (root / "dog").mkdir()
    (root / "dog" / "bad.png").touch()
    with pytest.raises(DataError, match=r"At least two classes are needed.*bad\.png"):
        load_manifest(str(root), cache=tmp_path)


def test_data_unfit_for_training_are_reported_on_all_the_same(
    folder_of: FolderOf, tmp_path: Path
) -> None:
    root = folder_of(("cat",))
    (root / "dog").mkdir()
    for number in range(3):
        (root / "dog" / f"bad{number}.png").touch()
    found = survey(str(root), seed=0, cache=tmp_path)
    assert found.unfit is not None
    assert found.report.broken == 3
    said = "\n".join(found.report.lines())
    assert all(f"bad{number}.png" in said for number in range(3))


def test_a_name_that_is_not_utf8_is_reported_and_left_out(
    folder_of: FolderOf, tmp_path: Path
) -> None:
    root = folder_of()
    odd = os.fsencode(root / "dog") + b"/caf\xe9.png"
    shutil.copy(next((root / "dog").glob("*.png")), odd)
    loaded = load_manifest(str(root), cache=tmp_path)
    assert [broken.reason for broken in loaded.broken] == ["its name is not UTF-8"]
    assert "\n".join(loaded.report.lines()).encode()


def test_a_given_split_without_train_is_an_error(folder_of: FolderOf, tmp_path: Path) -> None:
    rows = ["path,label,split"]
    for number, path in enumerate(sorted(folder_of().rglob("*.png"))):
        rows.append(f"{path},{path.parent.name},{'valid' if number % 2 else 'test'}")
    table = tmp_path / "images.csv"
    table.write_text("\n".join(rows))
    with pytest.raises(DataError, match="no image is left on train"):
        load_manifest(str(table), cache=tmp_path)


def noise(path: Path, generator: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(generator.integers(0, 256, (24, 24, 3), np.uint8)).save(path)


def test_a_side_whose_masks_show_no_class_is_an_error(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for side, values in (("train", (0, 1)), ("val", (0, 1)), ("test", (255, 255))):
        for number in range(4):
            noise(tmp_path / side / f"{number}.png", generator)
            mask = np.repeat(np.array(values, np.uint8), 12)[None].repeat(24, axis=0)
            (tmp_path / f"{side}annot").mkdir(exist_ok=True)
            Image.fromarray(mask).save(tmp_path / f"{side}annot" / f"{number}.png")
    with pytest.raises(DataError, match="no image on test shows a class"):
        load_manifest(str(tmp_path), task="segmentation", cache=tmp_path / "cache")


def test_a_side_without_an_object_is_an_error(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    lines = ["path,label,xmin,ymin,xmax,ymax,split"]
    for side in ("train", "valid", "test"):
        for number in range(4):
            noise(tmp_path / side / f"{number}.png", generator)
            box = ",,,," if side == "valid" else "cat,2,2,20,20"
            lines.append(f"{side}/{number}.png,{box},{side}")
    table = tmp_path / "boxes.csv"
    table.write_text("\n".join(lines))
    with pytest.raises(DataError, match="no image on valid shows an object"):
        load_manifest(str(table), task="detection", cache=tmp_path / "cache")
