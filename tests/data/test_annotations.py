from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sft_mlflow.data.annotations import Faulty, examine_annotations
from sft_mlflow.data.loading import survey
from sft_mlflow.data.masks import mask_facts
from sft_mlflow.data.readers import Entry, Listing
from sft_mlflow.data.scan import scan
from sft_mlflow.data.splitting import assign
from sft_mlflow.data.truth import Box, Mask, MaskValues, as_text, from_text
from sft_mlflow.errors import DataError

from .conftest import Picture

GOOD = Box("cat", 5, 5, 20, 20)


def examined(
    boxes: tuple[Box, ...], folder: Path, picture: Picture, faulty: Faulty = "clip"
) -> tuple[tuple[Box, ...], list[str]]:
    """What is left of boxes in a picture of 48 x 40, and the kinds of what was found."""
    picture(0).save(folder / "a.png")
    listing = Listing("l", "u", (Entry(folder / "a.png", boxes),))
    found = examine_annotations(listing, scan([folder / "a.png"]), faulty)
    truth = found.entries[0].truth
    assert isinstance(truth, tuple)
    return truth, [finding.kind for finding in found.findings]


@pytest.mark.parametrize(
    ("box", "kind", "left"),
    [
        (Box("cat", 30, 10, 30, 20), "empty-box", ()),
        (Box("cat", 30, 10, 20, 20), "empty-box", ()),
        (Box("cat", 50, 10, 60, 20), "box-outside", ()),
        (Box("cat", 40, 30, 60, 20 + 30), "box-outside", (Box("cat", 40, 30, 48, 40),)),
        (Box("cat", 10, 10, 10.5, 20), "tiny-box", ()),
        (Box("cat", 10, float("nan"), 20, 20), "empty-box", ()),
    ],
)
def test_a_faulty_box_is_mended_or_left_out_and_told(
    box: Box, kind: str, left: tuple[Box, ...], tmp_path: Path, picture: Picture
) -> None:
    assert examined((GOOD, box), tmp_path, picture) == ((GOOD, *left), [kind])
    assert examined((GOOD, box), tmp_path, picture, "skip") == ((GOOD,), [kind])
    with pytest.raises(DataError, match="1 faults in its annotations"):
        examined((GOOD, box), tmp_path, picture, "error")


def test_a_pixel_beyond_the_edge_is_rounding(tmp_path: Path, picture: Picture) -> None:
    found = examined((Box("cat", -1, 5, 49, 20),), tmp_path, picture, "skip")
    assert found == ((Box("cat", 0, 5, 48, 20),), [])


def test_the_same_box_twice_is_kept_once(tmp_path: Path, picture: Picture) -> None:
    assert examined((GOOD, GOOD), tmp_path, picture) == ((GOOD,), ["duplicate-box"])


def test_small_boxes_and_images_without_any_are_noted(tmp_path: Path, picture: Picture) -> None:
    small = Box("cat", 1, 1, 5, 20)
    assert examined((small,), tmp_path, picture) == ((small,), ["small-box"])
    assert examined((), tmp_path, picture) == ((), ["without-objects"])


def test_an_image_that_lost_all_its_boxes_is_no_example_of_nothing(
    tmp_path: Path, picture: Picture
) -> None:
    picture(0).save(tmp_path / "a.png")
    entries = (Entry(tmp_path / "a.png", (Box("cat", 9, 9, 9, 9),)),)
    [fact] = examine_annotations(Listing("l", "u", entries), scan([tmp_path / "a.png"])).facts
    assert fact.problem is not None
    assert fact.problem.kind == "bad-boxes"


def test_boxes_in_shares_become_pixels(tmp_path: Path, picture: Picture) -> None:
    picture(0).save(tmp_path / "a.png")
    entry = Entry(tmp_path / "a.png", (Box("cat", 0.25, 0.5, 0.5, 1.0),))
    listing = Listing("l", "u", (entry,), relative=True)
    found = examine_annotations(listing, scan([entry.path])).entries[0].truth
    assert found == (Box("cat", 12, 20, 24, 40),)


def write_masks(root: Path, picture: Picture, size: tuple[int, int] = (40, 48)) -> Path:
    (root / "images").mkdir()
    (root / "masks").mkdir()
    for name in ("a", "b"):
        picture(ord(name)).save(root / "images" / f"{name}.png")
        pixels = np.zeros((40, 48) if name == "a" else size, np.uint8)
        pixels[10:20] = 1
        pixels[0, 0] = 9
        Image.fromarray(pixels).save(root / "masks" / f"{name}.png")
    (root / "classes.txt").write_text("ground\ncat\n")
    return root


def test_a_value_that_is_no_class_is_told(tmp_path: Path, picture: Picture) -> None:
    found = survey(str(write_masks(tmp_path, picture)), seed=0, cache=tmp_path)
    message = next(f.message for f in found.report.findings if f.kind == "unknown-value")
    assert "value 9 in 2 masks is no class" in message


def test_a_mask_of_another_size_leaves_its_image_out(tmp_path: Path, picture: Picture) -> None:
    root = write_masks(tmp_path, picture, size=(20, 24))
    found = survey(str(root), seed=0, cache=tmp_path)
    assert [sample.path.stem for sample in found.manifest.samples] == ["a"]
    assert "24 x 20 pixels, the image 48 x 40" in found.broken[0].reason


def test_a_broken_mask_leaves_its_image_out(tmp_path: Path, picture: Picture) -> None:
    root = write_masks(tmp_path, picture)
    path = root / "masks" / "b.png"
    path.write_bytes(path.read_bytes()[:60])
    found = survey(str(root), seed=0, cache=tmp_path)
    assert [broken.path.stem for broken in found.broken] == ["b"]


def test_pixels_are_counted_by_class_and_unknown_value(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6), np.uint8)
    pixels[:2] = 1
    pixels[3] = 7
    pixels[2, 0] = 255
    Image.fromarray(pixels).save(tmp_path / "m.png")
    values = MaskValues({"0": "ground", "1": "cat"}, frozenset(("255",)))
    found = mask_facts(tmp_path / "m.png", values)
    assert (found.width, found.height) == (6, 4)
    assert found.pixels == {"ground": 5, "cat": 12}
    assert found.unknown == {"7": 6}


def test_what_is_said_of_an_image_goes_through_text() -> None:
    boxes = (Box("a, b", 1.5, 2, 3, 4), Box('"', 0, 0, 1, 1))
    assert from_text("detection", as_text(boxes)) == boxes
    mask = Mask(Path("/m.png"), "d" * 64, ("x", "y"))
    assert from_text("segmentation", as_text(mask)) == mask
    assert from_text("classification", as_text("cat")) == "cat"


def test_the_drawn_sides_keep_the_mix_of_classes(tmp_path: Path, picture: Picture) -> None:
    """Twelve images with a rare class, of two hundred: each side gets some of them."""
    random = np.random.default_rng(0)
    entries = []
    for number in range(200):
        shown = ["common"] * int(random.integers(0, 4)) + ["rare"] * (number % 17 == 0)
        boxes = tuple(
            Box(name, at, at, at + 10, at + 10) for at, name in enumerate(dict.fromkeys(shown))
        )
        entries.append(Entry(tmp_path / f"{number}.png", boxes))
        picture(number).save(tmp_path / f"{number}.png")
    facts = scan([entry.path for entry in entries])
    for seed in range(5):
        samples = assign(Listing("l", "u", tuple(entries)), facts, seed=seed)
        rare = [s.split for s in samples if "rare" in s.label]
        assert {side: rare.count(side) for side in ("valid", "test")} == {
            "valid": pytest.approx(1.8, abs=1.2),
            "test": pytest.approx(1.8, abs=1.2),
        }
        assert [s.split for s in samples].count("test") == pytest.approx(30, abs=9)
