"""`digits` for detection and segmentation: scenes composed of real handwritten digits.

Composed, with boxes and masks that are exact by construction; the digits themselves are the 1,797
that scikit-learn ships. No digit stands on two sides.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sft_mlflow.data.readers.materialised import materialise

NAME = "composed-digit-scenes"
SIDE_PIXELS = 128
SCENES = {"train": 240, "valid": 60, "test": 60}
MOST_DIGITS = 4
# Height of a digit in pixels.
SIZES = (28, 56)
# Of the digit's grey level, from which on a pixel belongs to it.
_INK = 96
_TRIES = 50


def scenes(cache: Path) -> Path:
    """The folder with SIDE/_annotations.coco.json, images beside it, polygons as run lengths."""
    return materialise(cache.expanduser().resolve() / NAME, _write)


def _write(root: Path) -> None:
    from sklearn.datasets import load_digits  # takes a second to import

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.images))
    ends = np.cumsum([int(len(order) * s / sum(SCENES.values())) for s in SCENES.values()])
    for number, ((side, wanted), end) in enumerate(zip(SCENES.items(), ends, strict=True)):
        pool = order[0 if number == 0 else ends[number - 1] : end]
        folder = root / side
        folder.mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for scene in range(wanted):
            # Each scene draws from a generator of its own: adding sides changes none.
            random = np.random.default_rng((number, scene))
            pixels, digits = _composed(random, bunch.images[pool], bunch.target[pool])
            name = f"{scene:04d}.png"
            Image.fromarray(pixels).save(folder / name)
            size = {"width": SIDE_PIXELS, "height": SIDE_PIXELS}
            images.append({"id": scene, "file_name": name, **size})
            for label, box, inked in digits:
                annotations.append(
                    {
                        "id": len(annotations),
                        "image_id": scene,
                        "category_id": label,
                        "bbox": box,
                        "area": int(inked.sum()),
                        "segmentation": {"size": [*inked.shape], "counts": _run_lengths(inked)},
                        "iscrowd": 0,
                    }
                )
        text = json.dumps(
            {
                "info": {"description": "composed scenes of handwritten digits"},
                "images": images,
                "categories": [{"id": digit, "name": str(digit)} for digit in range(10)],
                "annotations": annotations,
            }
        )
        (folder / "_annotations.coco.json").write_text(text)


def _composed(
    random: np.random.Generator, images: NDArray[np.float64], labels: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], list[tuple[int, list[int], NDArray[np.bool_]]]]:
    """A scene (H, W, 3) uint8; of each digit its class, box as x, y, w, h, and pixels (H, W)."""
    shade = random.uniform(30, 110, 3)
    noise = random.normal(0, 12, (SIDE_PIXELS // 8, SIDE_PIXELS // 8, 3))
    scene = np.clip(shade + np.kron(noise, np.ones((8, 8, 1))), 0, 255)
    taken = np.zeros((SIDE_PIXELS, SIDE_PIXELS), bool)
    digits = []
    for _ in range(random.integers(1, MOST_DIGITS + 1)):
        chosen = int(random.integers(len(images)))
        size = int(random.integers(*SIZES))
        grey = np.rint(images[chosen] * (255 / 16)).astype(np.uint8)
        digit = np.asarray(Image.fromarray(grey).resize((size, size), Image.Resampling.BICUBIC))
        colour = random.uniform(150, 255, 3)
        for _ in range(_TRIES):
            left, top = (int(v) for v in random.integers(0, SIDE_PIXELS - size, 2))
            window = np.s_[top : top + size, left : left + size]
            if not taken[window].any():
                break
        else:
            continue
        taken[window] = True
        inked = np.zeros_like(taken)
        inked[window] = digit >= _INK
        share = (digit / 255)[..., None]
        scene[window] = scene[window] * (1 - share) + colour * share
        rows, columns = np.flatnonzero(inked.any(1)), np.flatnonzero(inked.any(0))
        x, y = int(columns[0]), int(rows[0])
        box = [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
        digits.append((int(labels[chosen]), box, inked))
    return scene.astype(np.uint8), digits


def _run_lengths(inked: NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed run lengths: column by column, beginning with pixels that are not set."""
    flat = np.concatenate([[False], inked.ravel(order="F")])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return [int(run) for run in np.diff(np.concatenate([[0], changes, [inked.size]]))]
