"""Masks over pictures, for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torchvision.utils import draw_segmentation_masks

from sft_mlflow.data.images import decode
from sft_mlflow.data.masks import IGNORED
from sft_mlflow.tasks.pictures import beside, colours, jpeg

SIDE = 320
_ALPHA = 0.6
_LINE = 14


def beside_truth(
    path: Path, truth: NDArray[np.uint8], found: NDArray[np.uint8], classes: Sequence[str]
) -> bytes:
    """A JPEG: true mask at the left, predicted one at the right, the classes' colours below."""
    picture = decode(path, shorter_side=SIDE)
    picture.thumbnail((SIDE, SIDE))
    both = beside(*(_laid(picture, mask, classes) for mask in (truth, found)))
    present = [n for n in np.union1d(truth, found).tolist() if n != IGNORED]
    lines = 1 + (len(present) - 1) // 3
    sheet = Image.new("RGB", (both.width, both.height + _LINE * lines + 4), "white")
    sheet.paste(both, (0, 0))
    _legend(sheet, both.height + 3, present, classes)
    return jpeg(sheet)


def _laid(picture: Image.Image, mask: NDArray[np.uint8], classes: Sequence[str]) -> Image.Image:
    small = np.asarray(Image.fromarray(mask).resize(picture.size, Image.Resampling.NEAREST))
    layers = torch.from_numpy(np.stack([small == number for number in range(len(classes))]))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    drawn = draw_segmentation_masks(pixels, layers, _ALPHA, colours(len(classes)))
    return Image.fromarray(drawn.permute(1, 2, 0).numpy())


def _legend(sheet: Image.Image, top: int, present: Sequence[int], classes: Sequence[str]) -> None:
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    column = sheet.width // 3
    for place, number in enumerate(present):
        x, y = place % 3 * column, top + place // 3 * _LINE
        pen.rectangle((x + 2, y + 2, x + 10, y + 10), fill=colours(len(classes))[number])
        pen.text((x + 14, y), classes[number][:24], fill="black", font=font)
