"""What the pixels of masks stand for: from a file beside them, a known scheme, or the masks."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sft_mlflow.data.images import BrokenImageError, read_bytes
from sft_mlflow.data.masks import levels
from sft_mlflow.data.ordered import THREADS, ordered_map
from sft_mlflow.data.text import lines_of
from sft_mlflow.data.truth import MaskValues
from sft_mlflow.errors import DataError

# Line i names value i.
_NAME_LISTS = ("classes.txt", "labels.txt", "codes.txt", "label_names.txt")
# CVAT writes `name:r,g,b:parts:actions`; CamVid's `class_dict.csv` has the columns name, r, g, b.
_COLOUR_LISTS = ("labelmap.txt", "class_dict.csv")
# A class of such a name is none.
_NO_CLASS = frozenset(("void", "ignore", "ignored", "unlabeled", "unlabelled"))
# Everyone's value for pixels that nobody labelled.
_UNLABELLED = "255"
_MOST_VALUES = 256

# fmt: off
VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)
# fmt: on


def values_of(
    root: Path, masks: Sequence[Path], ignored: frozenset[str], known: Sequence[str] = ()
) -> MaskValues:
    """What the values of the masks stand for.

    A list of names or of colours in the root says so; else the names of a known scheme, where no
    mask has a value beyond them; else each value that occurs is a class of its own, 255 only where
    there is but 0 beside it, and the masks are read for them. ignored: values that are no class
    besides 255.
    Raises DataError where the masks are in colour and no list says what the colours are, and for
    a list that cannot be read.
    """
    if colours := next((root / n for n in _COLOUR_LISTS if (root / n).is_file()), None):
        return _without(_colours(colours), ignored)
    no_class = ignored | {_UNLABELLED}
    if listed := next((root / n for n in _NAME_LISTS if (root / n).is_file()), None):
        named = lines_of(listed)
        return _without({str(i): name.strip() for i, name in enumerate(named)}, no_class)
    occurring = _occurring(root, masks)
    if occurring == {0, int(_UNLABELLED)} and not ignored:
        # Black and white are the two classes, and nothing is left unlabelled.
        return MaskValues({str(value): str(value) for value in sorted(occurring)})
    found = occurring - {int(value) for value in no_class if value.isdecimal()}
    if known and max(found, default=0) < len(known):
        return _without({str(i): name for i, name in enumerate(known)}, no_class)
    return _without({str(value): str(value) for value in sorted(found)}, no_class)


def names(values: MaskValues) -> tuple[str, ...]:
    """The classes, each once, in the order of their values."""
    return tuple(dict.fromkeys(values.classes.values()))


def _without(classes: Mapping[str, str], ignored: frozenset[str]) -> MaskValues:
    kept = {
        value: name
        for value, name in classes.items()
        if name and value not in ignored and name.lower() not in _NO_CLASS
    }
    return MaskValues(kept, ignored | (classes.keys() - kept.keys()))


def _colours(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, line in enumerate(lines_of(path), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if path.suffix == ".csv":
            name, *cells = (cell.strip() for cell in next(csv.reader([line])))
        else:
            name, _, rest = line.partition(":")
            cells = rest.partition(":")[0].split(",")
        if number == 1 and name.lower() == "name":
            continue
        if len(cells) < 3 or not all(cell.strip().isdecimal() for cell in cells[:3]):
            raise DataError(f"{path}:{number}: expected a name and the colour as r, g, b.")
        found[",".join(str(int(cell)) for cell in cells[:3])] = name.strip()
    return found


def _occurring(root: Path, masks: Sequence[Path]) -> set[int]:
    def look(path: Path) -> set[int]:
        try:
            pixels = levels(read_bytes(path), path)
        except BrokenImageError:
            # The check reports it.
            return set()
        if pixels is None:
            raise DataError(
                f"{path}: the masks are in colour. Say which colour is which class in "
                f"{root}/class_dict.csv, with the columns name, r, g, b."
            )
        return set(np.unique(pixels).tolist())

    found: set[int] = set()
    for values in ordered_map(look, masks, ahead=4 * THREADS):
        found |= values
    if len(found) > _MOST_VALUES:
        raise DataError(
            f"{masks[0].parent}: the masks have {len(found)} values, too many to be classes. Are "
            "they masks?"
        )
    return found
