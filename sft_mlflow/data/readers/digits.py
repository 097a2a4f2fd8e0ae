"""`digits`: the 1,797 real handwritten digits of 8 x 8 pixels that scikit-learn ships."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from sft_mlflow.data.readers import folder
from sft_mlflow.data.readers.listing import Listing
from sft_mlflow.data.readers.materialised import materialise

NAME = "digits"


def accepts(uri: str) -> bool:
    """Whether the URI is `digits`."""
    return uri == NAME


def read(uri: str, *, cache: Path) -> Listing:
    """The digits as grey PNG files in cache/digits/CLASS, ten classes, no split.

    scikit-learn's grey levels 0 to 16 become 0 to 255. From the UCI repository: Alpaydin and
    Kaynak, Optical Recognition of Handwritten Digits (the test set of it).
    """
    root = materialise(cache.expanduser().resolve() / NAME, _write)
    return replace(folder.read(str(root), cache=cache), name=NAME, uri=uri)


def _write(root: Path) -> None:
    from sklearn.datasets import load_digits  # takes a second to import

    bunch = load_digits()
    for label in range(10):
        (root / str(label)).mkdir()
    for number, (values, label) in enumerate(zip(bunch.images, bunch.target, strict=True)):
        pixels = np.rint(values * (255 / 16)).astype(np.uint8)
        Image.fromarray(pixels).save(root / str(label) / f"{number:04d}.png")
