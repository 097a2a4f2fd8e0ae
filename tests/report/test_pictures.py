from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sft_mlflow.errors import DataError
from sft_mlflow.report.pictures import confusion_png
from sft_mlflow.tasks.figures import Confusion
from sft_mlflow.tasks.pictures import thumbnail


@pytest.mark.parametrize(
    "classes",
    [
        ("cat", "dog"),
        ("price in $", "$x^$ not mathematics"),
        ("日本語", "<b>", "line\nbreak"),
        ("a very long name of a class that goes on and on", "b"),
        tuple(f"class {i}" for i in range(24)),
        tuple(f"class {i}" for i in range(120)),
    ],
)
def test_a_confusion_matrix_of_any_classes_is_a_png(classes: tuple[str, ...]) -> None:
    counts = np.random.default_rng(0).integers(0, 9, (len(classes), len(classes)))
    image = Image.open(io.BytesIO(confusion_png(Confusion(classes, counts, "images"))))
    assert image.format == "PNG"
    assert min(image.size) > 200
    assert max(image.size) < 1200


def test_hits_are_blue_and_a_class_without_images_stays_white() -> None:
    png = confusion_png(Confusion(("a", "b"), np.array([[50, 0], [0, 0]]), "images"))
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3)
    blue = (pixels == (0x0B, 0x66, 0xC3)).all(axis=1).mean()
    assert 0.05 < blue < 0.25


def test_a_thumbnail_keeps_the_whole_picture_and_its_shape(tmp_path: Path) -> None:
    Image.new("RGB", (400, 200), "red").save(tmp_path / "wide.png")
    image = Image.open(io.BytesIO(thumbnail(tmp_path / "wide.png", side=100)))
    assert (image.format, image.size) == ("JPEG", (100, 50))


def test_a_tiny_picture_is_enlarged_by_a_whole_factor(tmp_path: Path) -> None:
    Image.new("L", (9, 6)).save(tmp_path / "tiny.png")
    image = Image.open(io.BytesIO(thumbnail(tmp_path / "tiny.png", side=100)))
    assert image.size == (99, 66)


def test_a_broken_file_has_no_thumbnail(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="not an image"):
        thumbnail(tmp_path / "broken.png")
