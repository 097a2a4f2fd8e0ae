from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from sft_mlflow.data.loading import load_manifest, save_manifest
from sft_mlflow.errors import DataError, OptionsError
from sft_mlflow.scoring.inputs import Inputs, find, survey

from .conftest import CLASSES, write_image


def listed(inputs: Inputs) -> list[tuple[str, str | None]]:
    return [(image.path.name, image.label) for image in inputs]


def write_all(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        write_image(root / name, seed)
    return root


def test_class_folders_are_labels_where_the_model_knows_them(tmp_path: Path) -> None:
    root = write_all(tmp_path / "in", "dog/b.png", "dog/deep/a.png", "cat/z.png")
    inputs = find(str(root), classes=CLASSES)
    assert listed(inputs) == [("z.png", "cat"), ("b.png", "dog"), ("a.png", "dog")]
    assert [label for _, label in listed(find(str(root), classes=("cat", "cow")))] == [None] * 3


def test_class_folders_below_split_folders_are_labels(tmp_path: Path) -> None:
    root = write_all(tmp_path / "in", "test/dog/b.png", "train/cat/a.png")
    assert listed(find(str(root), classes=CLASSES)) == [("b.png", "dog"), ("a.png", "cat")]


def test_images_beside_the_class_folders_have_no_label(tmp_path: Path) -> None:
    root = write_all(tmp_path / "in", "dog/b.png", "loose.png", "dog/.hidden.png", "notes.txt.png")
    (root / "readme.txt").write_text("no image")
    assert listed(find(str(root), classes=CLASSES)) == [
        ("loose.png", None),
        ("notes.txt.png", None),
        ("b.png", "dog"),
    ]


def test_a_glob_matches_as_pythons_own_does_in_a_fixed_order(tmp_path: Path) -> None:
    root = write_all(tmp_path, "b/1.png", "a/2.png", "a/x/3.png", "a/x/4.jpg", "5.png")
    assert listed(find(f"{root}/*/*.png", classes=CLASSES)) == [("2.png", None), ("1.png", None)]
    every = find(f"{root}/**/*.png", classes=CLASSES)
    assert {image.path for image in every} == set(root.glob("**/*.png"))
    assert [image.path for image in every] == [image.path for image in every]
    assert listed(find(f"{root}/a/**/[34].*", classes=CLASSES)) == [
        ("3.png", None),
        ("4.jpg", None),
    ]


def test_tables_give_paths_relative_to_themselves_and_labels_if_any(tmp_path: Path) -> None:
    rows = pd.DataFrame({"path": ["a.png", "/x/b.png"], "label": ["cat", None]})
    rows.to_csv(tmp_path / "t.csv", index=False)
    rows.to_parquet(tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        found = [(i.path, i.label) for i in find(str(tmp_path / name), classes=CLASSES)]
        assert found == [(tmp_path / "a.png", "cat"), (Path("/x/b.png"), None)]
    (tmp_path / "only.csv").write_text("path\na.png\n\nb.png\n")
    assert listed(find(str(tmp_path / "only.csv"), classes=CLASSES)) == [
        ("a.png", None),
        ("b.png", None),
    ]


def test_a_saved_manifest_is_a_table_of_which_one_side_can_be_asked(
    animals: Path, tmp_path: Path
) -> None:
    manifest = load_manifest(str(animals), cache=tmp_path / "cache").manifest
    save_manifest(manifest, tmp_path / "manifest.parquet")
    uri = str(tmp_path / "manifest.parquet")
    every = [(i.path, i.label) for i in find(uri, classes=CLASSES)]
    assert every == [(s.path, s.label) for s in manifest.samples]
    tested = [(i.path, i.label) for i in find(uri, classes=CLASSES, split="test")]
    assert tested == [(s.path, s.label) for s in manifest.side("test")]


def test_a_side_can_only_be_asked_of_a_table_that_has_them(tmp_path: Path) -> None:
    root = write_all(tmp_path / "in", "a.png")
    with pytest.raises(OptionsError, match="only a table"):
        find(str(root), classes=CLASSES, split="test")
    (tmp_path / "t.csv").write_text("path\na.png\n")
    with pytest.raises(OptionsError, match="no column 'split'"):
        survey(find(str(tmp_path / "t.csv"), classes=CLASSES, split="test"))


def test_one_image_is_an_input_too(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", 0)
    assert listed(find(str(path), classes=CLASSES)) == [("a.png", None)]


def test_what_does_not_exist_is_refused_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(OptionsError, match=r"Did you mean '.*images'"):
        find(str(tmp_path / "imagse"), classes=CLASSES)


def test_an_input_without_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images found"):
        survey(find(str(tmp_path / "empty"), classes=CLASSES))
    with pytest.raises(DataError, match="no images found"):
        survey(find(f"{tmp_path}/none/*.png", classes=CLASSES))


@pytest.mark.parametrize(
    ("text", "message"),
    [("file,label\na.png,cat\n", "no column 'path'"), ("path,label\n,cat\n", ":2: no path")],
)
def test_a_wrong_table_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        survey(find(str(tmp_path / "t.csv"), classes=CLASSES))


def test_a_link_that_points_upwards_is_not_walked_for_ever(tmp_path: Path) -> None:
    root = write_all(tmp_path / "in", "sub/a.png")
    (root / "sub" / "up").symlink_to(root)
    assert listed(find(str(root), classes=())) == [("a.png", None)]


def test_the_survey_sees_a_picture_that_was_replaced(tmp_path: Path) -> None:
    root = write_all(tmp_path / "in", "a.png", "b.png")
    inputs = find(str(root), classes=CLASSES)
    before = survey(inputs)
    assert survey(inputs) == before
    assert (before.images, before.labelled) == (2, 0)
    os.utime(root / "a.png", ns=(1, 1))
    assert survey(inputs).digest != before.digest


def test_a_table_of_boxes_lists_each_image_once_and_without_a_class(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text(
        "path,label,xmin,ymin,xmax,ymax\na.png,cat,1,1,5,5\na.png,dog,2,2,6,6\nb.png,,,,,\n"
    )
    inputs = find(str(tmp_path / "boxes.csv"), classes=("cat", "dog"))
    assert [(image.path.name, image.label) for image in inputs] == [
        ("a.png", None),
        ("b.png", None),
    ]
