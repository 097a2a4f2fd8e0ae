"""What every reader of boxes and of masks owes: the same truth from whatever wrote it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import Cityscapes

from sft_mlflow.data.annotations import examine_annotations
from sft_mlflow.data.loading import load_manifest, read_manifest, save_manifest, survey
from sft_mlflow.data.masks import IGNORED, read_mask
from sft_mlflow.data.readers import Listing, cityscapes, read
from sft_mlflow.data.scan import scan
from sft_mlflow.data.truth import Box, Mask
from sft_mlflow.errors import DataError, OptionsError

from . import annotated
from .annotated import BOXES, CLASSES, DETECTION, SEGMENTATION

Write = Callable[[Path], str]


def examined(listing: Listing) -> dict[str, tuple[Box, ...]]:
    facts = scan([entry.path for entry in listing.entries])
    found = examine_annotations(listing, facts)
    assert not [f for f in found.findings if f.severity != "note"]
    return {e.path.stem: e.truth for e in found.entries if isinstance(e.truth, tuple)}


@pytest.mark.parametrize("write", DETECTION.values(), ids=DETECTION.keys())
class TestEveryFormatOfBoxes:
    def test_says_what_was_written(self, write: Write, tmp_path: Path) -> None:
        found = examined(read(write(tmp_path), cache=tmp_path))
        assert found.keys() == BOXES.keys()
        for name, boxes in found.items():
            assert sorted(box.label for box in boxes) == sorted(b.label for b in BOXES[name])
            for box, written in zip(sorted(boxes), sorted(BOXES[name]), strict=True):
                edges = (box.xmin, box.ymin, box.xmax, box.ymax)
                # globox writes shares with six digits.
                assert edges == pytest.approx(
                    (written.xmin, written.ymin, written.xmax, written.ymax), abs=1e-3
                )

    def test_is_taken_for_detection_and_refused_for_classification(
        self, write: Write, tmp_path: Path
    ) -> None:
        uri = write(tmp_path)
        assert read(uri, cache=tmp_path).task == "detection"
        with pytest.raises(OptionsError, match="not for classification"):
            read(uri, cache=tmp_path, task="classification")

    def test_lists_the_same_in_the_same_order_again(self, write: Write, tmp_path: Path) -> None:
        uri = write(tmp_path)
        assert read(uri, cache=tmp_path) == read(uri, cache=tmp_path)

    def test_every_box_names_where_it_was_read(self, write: Write, tmp_path: Path) -> None:
        listing = read(write(tmp_path), cache=tmp_path)
        places = [box.where for e in listing.entries for box in e.truth if isinstance(box, Box)]
        assert len(places) == len(set(places)) == 3
        assert all(str(tmp_path) in place for place in places)


@pytest.mark.parametrize("write", SEGMENTATION.values(), ids=SEGMENTATION.keys())
class TestEveryFormatOfMasks:
    def test_says_what_was_written(self, write: Write, tmp_path: Path) -> None:
        listing = read(write(tmp_path), cache=tmp_path / "cache", task="segmentation")
        assert listing.classes == ("background", *CLASSES)
        assert listing.mask_values is not None
        assert [entry.path.stem for entry in listing.entries] == ["a", "b"]
        for entry in listing.entries:
            assert isinstance(entry.truth, Mask)
            found = read_mask(entry.truth.path, listing.mask_values, listing.classes)
            assert np.array_equal(found, annotated.indices(entry.path.stem))

    def test_a_saved_manifest_is_data_again(self, write: Write, tmp_path: Path) -> None:
        uri = write(tmp_path)
        found = survey(uri, task="segmentation", seed=0, cache=tmp_path / "cache").manifest
        assert found.classes == ("background", *CLASSES)
        assert found.samples[0].label == "background, cell, nucleus"
        save_manifest(found, tmp_path / "saved.parquet")
        assert read_manifest(tmp_path / "saved.parquet") == found
        again = survey(str(tmp_path / "saved.parquet"), seed=0, cache=tmp_path).manifest
        assert (again.task, again.samples, again.digest) == (
            "segmentation",
            found.samples,
            found.digest,
        )


def test_saved_boxes_are_data_again(tmp_path: Path) -> None:
    found = survey(annotated.coco(tmp_path), seed=0, cache=tmp_path).manifest
    save_manifest(found, tmp_path / "saved.parquet")
    again = survey(str(tmp_path / "saved.parquet"), seed=0, cache=tmp_path).manifest
    assert again.samples == found.samples
    assert again.task == "detection"


def test_cityscapes_trains_on_the_classes_that_torchvision_names(tmp_path: Path) -> None:
    ours = cityscapes.read(
        str(written_cityscapes(tmp_path)), cache=tmp_path, task="segmentation", ignored=frozenset()
    )
    assert ours.mask_values is not None
    theirs = {str(c.id): c.name for c in Cityscapes.classes if c.train_id not in (-1, 255)}
    assert dict(ours.mask_values.classes) == theirs
    assert [(e.path.name, e.split, e.group) for e in ours.entries] == [
        ("bonn_000_leftImg8bit.png", "train", "bonn"),
        ("ulm_000_leftImg8bit.png", "valid", "ulm"),
    ]


def written_cityscapes(root: Path) -> Path:
    for side, city in (("train", "bonn"), ("val", "ulm"), ("test", "mainz")):
        for kind, suffix in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
            folder = root / kind / side / city
            folder.mkdir(parents=True)
            pixels = np.full((8, 16), 7 if side != "test" else 0, np.uint8)
            pixels[:, 8:] = 26
            Image.fromarray(pixels).save(folder / f"{city}_000_{suffix}.png")
    return root


def test_cityscapes_is_read_for_segmentation_and_lacks_a_test_side(tmp_path: Path) -> None:
    found = survey(str(written_cityscapes(tmp_path)), seed=0, cache=tmp_path)
    assert found.manifest.task == "segmentation"
    assert found.manifest.classes == ("road", "car")


def test_voc_lists_give_the_sides(tmp_path: Path) -> None:
    uri = annotated.voc(tmp_path)
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n")
    (lists / "test.txt").write_text("b  1\n")
    assert [(e.path.stem, e.split) for e in read(uri, cache=tmp_path).entries] == [
        ("a", "train"),
        ("b", "test"),
    ]
    (lists / "test.txt").write_text("")
    listing = read(uri, cache=tmp_path)
    assert [entry.path.stem for entry in listing.entries] == ["a"]
    assert "1 images are in no list" in listing.findings[0].message


def test_xml_files_may_stand_beside_their_images(tmp_path: Path) -> None:
    annotated.voc(tmp_path / "voc")
    for side in ("train", "valid"):
        shutil.copytree(tmp_path / "voc" / "JPEGImages", tmp_path / "export" / side)
        shutil.copytree(
            tmp_path / "voc" / "Annotations", tmp_path / "export" / side, dirs_exist_ok=True
        )
    listing = read(str(tmp_path / "export"), cache=tmp_path)
    assert [(e.path.stem, e.split) for e in listing.entries] == [
        (name, side) for side in ("train", "valid") for name in ("a", "b")
    ]


def test_class_folders_with_some_xml_file_are_class_folders(tmp_path: Path) -> None:
    for name in ("cell", "nucleus"):
        annotated.pictures(tmp_path / name)
    (tmp_path / "about.xml").write_text("<about/>")
    assert read(str(tmp_path), cache=tmp_path).task == "classification"


def test_voc_without_names_has_those_of_the_challenge(tmp_path: Path) -> None:
    uri = annotated.voc_masks(tmp_path)
    (tmp_path / "classes.txt").unlink()
    listing = read(uri, cache=tmp_path)
    assert listing.classes[:3] == ("background", "aeroplane", "bicycle")
    assert len(listing.classes) == 21


def test_masks_without_names_have_their_values_as_classes(tmp_path: Path) -> None:
    uri = annotated.mask_folders(tmp_path)
    (tmp_path / "classes.txt").unlink()
    assert read(uri, cache=tmp_path).classes == ("0", "1", "2")
    assert read(uri, cache=tmp_path, ignored=frozenset(("0",))).classes == ("1", "2")


def test_an_ignored_value_counts_for_nothing(tmp_path: Path) -> None:
    uri = annotated.mask_folders(tmp_path)
    listing = read(uri, cache=tmp_path, ignored=frozenset(("0",)))
    assert listing.mask_values is not None
    mask = listing.entries[0].truth
    assert isinstance(mask, Mask)
    found = read_mask(mask.path, listing.mask_values, listing.classes)
    assert np.array_equal(found == IGNORED, annotated.indices("a") == 0)


def test_colours_without_a_table_are_refused_with_what_to_write(tmp_path: Path) -> None:
    uri = annotated.colour_masks(tmp_path)
    (tmp_path / "class_dict.csv").unlink()
    with pytest.raises(DataError, match=r"class_dict\.csv, with the columns name, r, g, b"):
        read(uri, cache=tmp_path)


def test_coco_folders_give_the_sides(tmp_path: Path) -> None:
    for side, image in (("train2017", "a"), ("val2017", "b")):
        annotated.pictures(tmp_path / side)
        content = json.loads(Path(annotated.coco(tmp_path / f"of {side}")).read_text())
        one = [i for i in content["images"] if i["file_name"] == f"{image}.png"]
        content["images"] = one
        content["annotations"] = [
            a for a in content["annotations"] if a["image_id"] == one[0]["id"]
        ]
        (tmp_path / "annotations").mkdir(exist_ok=True)
        path = tmp_path / "annotations" / f"instances_{side}.json"
        path.write_text(json.dumps(content))
    listing = read(str(tmp_path), cache=tmp_path)
    assert [(e.path.parent.name, e.path.stem, e.split) for e in listing.entries] == [
        ("train2017", "a", "train"),
        ("val2017", "b", "valid"),
    ]


def test_a_json_that_is_no_coco_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"images": 3}')
    with pytest.raises(DataError, match=r"other\.json: no COCO JSON"):
        read(str(tmp_path / "other.json"), cache=tmp_path)


def test_what_cannot_be_drawn_is_told_by_its_number(tmp_path: Path) -> None:
    uri = annotated.coco_masks(tmp_path)
    content = json.loads(Path(uri).read_text())
    first, second, third = content["annotations"]
    first["segmentation"] = [[1, 2, 3, 4]]
    second["category_id"] = 77
    third["image_id"] = 99
    Path(uri).write_text(json.dumps(content))
    listing = read(uri, cache=tmp_path / "cache", task="segmentation")
    assert [(f.kind, f.message.partition("annotation ")[2][:1]) for f in listing.findings] == [
        ("unknown-class", "1"),
        ("annotation-without-image", "2"),
        ("bad-annotation", "0"),
    ]


def test_a_crowd_is_no_object_and_still_covers_pixels(tmp_path: Path) -> None:
    uri = annotated.coco_masks(tmp_path)
    content = json.loads(Path(uri).read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    Path(uri).write_text(json.dumps(content))
    boxes = read(uri, cache=tmp_path / "cache")
    assert [entry.truth for entry in boxes.entries] == [(), ()]
    assert [finding.kind for finding in boxes.findings] == ["crowd"]
    masks = read(uri, cache=tmp_path / "cache", task="segmentation")
    assert masks.mask_values is not None
    for entry in masks.entries:
        assert isinstance(entry.truth, Mask)
        found = read_mask(entry.truth.path, masks.mask_values, masks.classes)
        assert np.array_equal(found, annotated.indices(entry.path.stem))


def test_an_image_whose_objects_were_left_out_is_no_example_of_nothing(tmp_path: Path) -> None:
    uri = annotated.coco(tmp_path)
    content = json.loads(Path(uri).read_text())
    for annotation in content["annotations"]:
        annotation["category_id"] = 77
    Path(uri).write_text(json.dumps(content))
    listing = read(uri, cache=tmp_path)
    facts = examine_annotations(listing, scan([e.path for e in listing.entries])).facts
    assert [fact.problem and fact.problem.kind for fact in facts] == ["bad-boxes"] * 2


def test_ids_may_be_written_as_text(tmp_path: Path) -> None:
    uri = annotated.coco(tmp_path)
    plain = read(uri, cache=tmp_path)
    content = json.loads(Path(uri).read_text())
    for annotation in content["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
    Path(uri).write_text(json.dumps(content))
    assert read(uri, cache=tmp_path) == plain


def test_a_polygon_json_without_sizes_is_refused_by_name(tmp_path: Path) -> None:
    uri = annotated.coco_masks(tmp_path)
    content = json.loads(Path(uri).read_text())
    del content["images"][0]["height"]
    Path(uri).write_text(json.dumps(content))
    with pytest.raises(DataError, match="without height and width"):
        read(uri, cache=tmp_path / "cache", task="segmentation")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB"])
def test_black_and_white_masks_are_two_classes(mode: str, tmp_path: Path) -> None:
    annotated.pictures(tmp_path / "images")
    (tmp_path / "masks").mkdir()
    for name in BOXES:
        white = Image.fromarray(255 * (annotated.indices(name) > 0).astype(np.uint8))
        white.convert(mode).save(tmp_path / "masks" / f"{name}.png")
    listing = read(str(tmp_path), cache=tmp_path)
    assert listing.classes == ("0", "1" if mode == "1" else "255")
    assert listing.mask_values is not None
    for entry in listing.entries:
        assert isinstance(entry.truth, Mask)
        found = read_mask(entry.truth.path, listing.mask_values, listing.classes)
        assert np.array_equal(found, annotated.indices(entry.path.stem) > 0)


def test_rows_of_one_image_on_two_sides_are_refused_by_line(tmp_path: Path) -> None:
    text = "path,label,xmin,ymin,xmax,ymax,split\na.png,x,1,1,5,5,train\na.png,y,1,1,5,5,test\n"
    (tmp_path / "boxes.csv").write_text(text)
    with pytest.raises(DataError, match=r"boxes\.csv:3: split or group of 'a\.png'"):
        read(str(tmp_path / "boxes.csv"), cache=tmp_path)


def test_a_wrong_line_of_yolo_is_told_and_the_others_are_read(tmp_path: Path) -> None:
    uri = annotated.yolo(tmp_path)
    path = tmp_path / "labels" / "train" / "b.txt"
    good = path.read_text()
    path.write_text(f"nan .5 .5 .1 .1\n9 .5 .5 .1 .1\n0 .5 .5\n{good}")
    (tmp_path / "labels" / "train" / "classes.txt").write_text("cell\nnucleus\n")
    listing = read(uri, cache=tmp_path)
    assert [(f.kind, f.message.split(":")[1]) for f in listing.findings] == [
        ("bad-annotation", "1"),
        ("unknown-class", "2"),
        ("bad-annotation", "3"),
    ]
    assert len(listing.entries[1].truth) == 1


def test_text_in_another_encoding_is_refused_naming_the_file(tmp_path: Path) -> None:
    uri = annotated.mask_folders(tmp_path)
    (tmp_path / "classes.txt").write_text("Straße\nWiese\n", encoding="latin-1")
    with pytest.raises(DataError, match=r"classes\.txt: is no UTF-8 text"):
        read(uri, cache=tmp_path)


def test_a_label_file_in_another_encoding_is_refused_naming_it(tmp_path: Path) -> None:
    uri = annotated.yolo(tmp_path)
    path = tmp_path / "labels" / "train" / "b.txt"
    path.write_text(path.read_text(), encoding="utf-16")
    with pytest.raises(DataError, match=r"b\.txt: is no UTF-8 text"):
        read(uri, cache=tmp_path)


def test_a_yaml_that_names_no_path_is_refused_naming_it(tmp_path: Path) -> None:
    uri = annotated.yolo(tmp_path)
    with (tmp_path / "data.yaml").open("a") as file:
        file.write("val: 3\n")
    with pytest.raises(DataError, match=r"data\.yaml: 3 is no path of images"):
        read(uri, cache=tmp_path)


def test_what_trainval_has_beside_val_trains(tmp_path: Path) -> None:
    uri = annotated.voc(tmp_path)
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("a\nb\n")
    (lists / "val.txt").write_text("b\n")
    assert {e.path.stem: e.split for e in read(uri, cache=tmp_path).entries} == {
        "a": "train",
        "b": "valid",
    }


def test_scenes_have_the_boxes_of_their_masks(digits_cache: Path) -> None:
    boxes = load_manifest("digits", task="detection", cache=digits_cache).manifest
    masks = load_manifest("digits", task="segmentation", cache=digits_cache).manifest
    assert len(boxes.samples) == len(masks.samples) == 360
    assert [s.digest for s in boxes.samples] == [s.digest for s in masks.samples]
    assert masks.mask_values is not None
    for with_boxes, with_mask in zip(boxes.samples[::40], masks.samples[::40], strict=True):
        assert isinstance(with_mask.truth, Mask)
        pixels = read_mask(with_mask.truth.path, masks.mask_values, masks.classes)
        assert isinstance(with_boxes.truth, tuple)
        assert with_boxes.truth
        for box in with_boxes.truth:
            rows, columns = np.nonzero(pixels == masks.classes.index(box.label))
            inside = (
                (columns >= box.xmin)
                & (columns < box.xmax)
                & (rows >= box.ymin)
                & (rows < box.ymax)
            )
            own = np.stack([columns[inside], rows[inside]])
            assert own.min(1).tolist() == [box.xmin, box.ymin]
            assert (own.max(1) + 1).tolist() == [box.xmax, box.ymax]


def test_no_digit_of_the_scenes_stands_on_two_sides(digits_cache: Path) -> None:
    manifest = load_manifest("digits", task="detection", cache=digits_cache).manifest
    assert {s.split for s in manifest.samples} == {"train", "valid", "test"}
    assert len({s.digest for s in manifest.samples}) == 360
