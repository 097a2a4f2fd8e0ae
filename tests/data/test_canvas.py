from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sft_mlflow.data.canvas import (
    PADDING,
    Canvas,
    boxes_in_picture,
    boxes_on_canvas,
    canvas_for,
    lay,
    lay_mask,
    place,
)
from sft_mlflow.data.masks import IGNORED
from sft_mlflow.data.pixels import PixelSpec, pixels_of


@pytest.mark.parametrize(
    ("sizes", "side", "expected"),
    [
        ([(640, 480)], 512, Canvas(384, 512)),
        ([(480, 360)] * 3 + [(100, 900)], 480, Canvas(352, 480)),
        ([(300, 600)], 256, Canvas(256, 128)),
        ([(100, 100)], 128, Canvas(128, 128)),
        ([(3000, 10)], 64, Canvas(32, 64)),
    ],
)
def test_the_canvas_has_the_usual_shape_in_multiples_of_what_networks_halve(
    sizes: list[tuple[int, int]], side: int, expected: Canvas
) -> None:
    assert canvas_for(sizes, side) == expected


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (333, 77), (5, 900), (64, 96)])
def test_a_picture_fits_and_its_boxes_come_back(size: tuple[int, int]) -> None:
    canvas = Canvas(96, 128)
    at = place(canvas, *size)
    assert at.width <= canvas.width
    assert at.height <= canvas.height
    assert at.width == canvas.width or at.height == canvas.height
    width, height = size
    boxes = np.array([[0, 0, width, height], [width / 4, height / 3, width / 2, height]])
    there = boxes_on_canvas(boxes, at)
    assert there[0].tolist() == [0, 0, at.width, at.height]
    assert np.allclose(boxes_in_picture(there, at), boxes)


def test_boxes_found_in_the_padding_are_cut_off_at_the_picture() -> None:
    at = place(Canvas(64, 64), 200, 100)
    assert boxes_in_picture(np.array([[10.0, 10.0, 70.0, 60.0]]), at).tolist() == [
        [31.25, 31.25, 200.0, 100.0]
    ]


def test_a_picture_and_its_mask_lie_on_the_same_place() -> None:
    pixels = np.zeros((50, 100, 3), np.uint8)
    pixels[:, 60:] = 255
    mask = (pixels[..., 0] > 0).astype(np.uint8)
    canvas = Canvas(64, 64)
    laid = lay(Image.fromarray(pixels), pixels.shape[1::-1], canvas, "nearest")
    of_mask = lay_mask(mask, canvas)
    assert laid.shape == (64, 64, 3)
    assert (laid[32:] == PADDING).all()
    assert (of_mask[32:] == IGNORED).all()
    assert np.array_equal(laid[:32, :, 0] > 128, of_mask[:32] == 1)


def test_pixels_are_of_the_shape_that_the_spec_says(tmp_path: object) -> None:
    buffer = Image.new("RGB", (90, 30), "teal")
    path = f"{tmp_path}/a.png"
    buffer.save(path)
    with open(path, "rb") as file:
        data = file.read()
    for spec in (PixelSpec(32, "bilinear"), PixelSpec(64, "bicubic", Canvas(32, 64))):
        assert pixels_of(data, spec).shape == spec.shape
