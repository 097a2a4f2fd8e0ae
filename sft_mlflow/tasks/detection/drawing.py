"""Boxes over pictures, for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sft_mlflow.data.images import decode_sized
from sft_mlflow.tasks.detection.boxes import Boxes
from sft_mlflow.tasks.pictures import beside, colours, jpeg

SIDE = 320


def beside_truth(path: Path, truth: Boxes, found: Boxes, classes: Sequence[str]) -> bytes:
    """A JPEG: true boxes at the left, found ones at the right with their scores."""
    picture, (width, height) = decode_sized(path, shorter_side=SIDE)
    # A small picture is enlarged by a whole factor, so that boxes and words have room.
    factor = max(1, SIDE // max(picture.size))
    shown = picture.resize(
        (picture.width * factor, picture.height * factor), Image.Resampling.NEAREST
    )
    shown.thumbnail((SIDE, SIDE))
    scale = np.array([shown.width / width, shown.height / height] * 2)
    left = _drawn(shown, truth, scale, classes, scores=False)
    return jpeg(beside(left, _drawn(shown, found, scale, classes, scores=True)))


def _drawn(
    picture: Image.Image,
    boxes: Boxes,
    scale: np.ndarray[tuple[int], np.dtype[np.float64]],
    classes: Sequence[str],
    *,
    scores: bool,
) -> Image.Image:
    copy = picture.copy()
    pen, font = ImageDraw.Draw(copy), ImageFont.load_default(10)
    paint = colours(len(classes))
    for box, label, score in zip(boxes.boxes, boxes.labels, boxes.scores, strict=True):
        xmin, ymin, xmax, ymax = (box * scale).tolist()
        colour = paint[label]
        pen.rectangle((xmin, ymin, max(xmin, xmax), max(ymin, ymax)), outline=colour, width=2)
        text = f"{classes[label][:12]} {score:.2f}" if scores else classes[label][:12]
        top = max(0.0, ymin - 11)
        left, _, right, _ = pen.textbbox((xmin, top), text, font=font)
        pen.rectangle((left, top, right + 2, top + 11), fill=colour)
        pen.text((xmin + 1, top), text, fill="white", font=font)
    return copy
