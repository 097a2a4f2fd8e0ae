"""Cityscapes: `leftImg8bit` and `gtFine`, and the 19 classes that are trained on."""

from __future__ import annotations

from pathlib import Path

from sft_mlflow.data.findings import fault
from sft_mlflow.data.readers.listing import SPLIT_WORDS, Entry, Listing
from sft_mlflow.data.truth import Mask, MaskValues, TaskName

_IMAGES, _MASKS = "leftImg8bit", "gtFine"
# By the value in `_labelIds.png`: labels of the data set's own scripts whose trainId is not 255.
_CLASSES = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
_LARGEST = 33


def tasks(uri: str) -> tuple[TaskName, ...]:
    """Segmentation for a folder with `leftImg8bit` and `gtFine`."""
    root = Path(uri).expanduser()
    both = (root / _IMAGES).is_dir() and (root / _MASKS).is_dir()
    return ("segmentation",) if both else ()


def read(uri: str, *, cache: Path, task: TaskName, ignored: frozenset[str]) -> Listing:
    """The images of `train` and `val`, by city and name; a city is a group.

    The published masks of `test` are empty, so it is drawn from the training cities, unless
    another folder of masks has been put there. The arguments beside the URI are not used.
    """
    del cache, task, ignored
    root = Path(uri).expanduser().resolve()
    entries, findings = [], []
    for folder in sorted(path for path in (root / _IMAGES).iterdir() if path.is_dir()):
        side = SPLIT_WORDS.get(folder.name)
        if side is None or side == "test":
            continue
        for image in sorted(folder.glob(f"*/*_{_IMAGES}.png")):
            stem = image.name.removesuffix(f"_{_IMAGES}.png")
            city = image.parent.name
            mask = root / _MASKS / folder.name / city / f"{stem}_{_MASKS}_labelIds.png"
            if mask.is_file():
                entries.append(Entry(image, Mask(mask), side, city))
            else:
                message = f"{image}: has no mask {mask.name}; left out"
                findings.append(fault("image-without-annotation", message, image))
    classes = {str(value): name for value, name in _CLASSES.items()}
    others = {str(value) for value in range(-1, _LARGEST + 1)} - classes.keys()
    return Listing(
        root.name,
        str(root),
        tuple(entries),
        classes=tuple(_CLASSES.values()),
        # 255: a license plate is -1, which a byte cannot hold.
        mask_values=MaskValues(classes, frozenset(others | {"255"})),
        findings=tuple(findings),
    )
