"""`digits`: the 1,797 real handwritten digits of 8 x 8 pixels that scikit-learn ships."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from sft_mlflow.data.readers import coco, folder
from sft_mlflow.data.readers.listing import Listing
from sft_mlflow.data.readers.materialised import materialise
from sft_mlflow.data.readers.scenes import scenes
from sft_mlflow.data.truth import TASK_NAMES, TaskName

NAME = "digits"


def tasks(uri: str) -> tuple[TaskName, ...]:
    """Each task for `digits`: single digits, or scenes composed of them."""
    return TASK_NAMES if uri == NAME else ()


def read(uri: str, *, cache: Path, task: TaskName, ignored: frozenset[str]) -> Listing:
    """The digits as grey PNG files in cache/digits/CLASS, ten classes, no split.

    For detection and segmentation, scenes composed of them (`scenes`), with a split.

    scikit-learn's grey levels 0 to 16 become 0 to 255. From the UCI repository: Alpaydin and
    Kaynak, Optical Recognition of Handwritten Digits (the test set of it).
    """
    if task != "classification":
        listing = coco.read(str(scenes(cache)), cache=cache, task=task, ignored=ignored)
        return replace(listing, uri=uri)
    root = materialise(cache.expanduser().resolve() / NAME, _write)
    listing = folder.read(str(root), cache=cache, task=task, ignored=ignored)
    return replace(listing, name=NAME, uri=uri)


def _write(root: Path) -> None:
    from sklearn.datasets import load_digits  # takes a second to import

    bunch = load_digits()
    for label in range(10):
        (root / str(label)).mkdir()
    for number, (values, label) in enumerate(zip(bunch.images, bunch.target, strict=True)):
        pixels = np.rint(values * (255 / 16)).astype(np.uint8)
        Image.fromarray(pixels).save(root / str(label) / f"{number:04d}.png")
