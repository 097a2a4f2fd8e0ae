"""Pictures with structure, so that no two seeds look alike, and folders of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Picture = Callable[..., Image.Image]


def _picture(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="session")
def picture() -> Picture:
    return _picture


@pytest.fixture
def folder_of(tmp_path: Path) -> Callable[..., Path]:
    """Writes `images` pictures in each class folder below tmp_path/name."""

    def write(
        classes: tuple[str, ...] = ("cat", "dog"),
        images: int = 30,
        name: str = "set",
        seed: int = 0,
    ) -> Path:
        root = tmp_path / name
        for index, label in enumerate(classes):
            (root / label).mkdir(parents=True, exist_ok=True)
            for number in range(images):
                key = seed + 10_000 * index + number
                _picture(key, 24, 24).save(root / label / f"{key:06d}.png")
        return root

    return write
