"""What is true of an image: its class, the boxes of its objects, or a mask of its pixels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, get_args

TaskName = Literal["classification", "detection", "segmentation"]
TASK_NAMES: tuple[TaskName, ...] = get_args(TaskName)


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """An object: its class and where it is, in pixels of the upright image, edges included."""

    label: str
    xmin: float
    ymin: float
    xmax: float
    ymax: float
    # Where it was read, for messages: a file and line, or an id.
    where: str = field(default="", compare=False)

    @property
    def width(self) -> float:
        """In pixels; negative where the box is inverted."""
        return self.xmax - self.xmin

    @property
    def height(self) -> float:
        """In pixels; negative where the box is inverted."""
        return self.ymax - self.ymin


@dataclass(frozen=True, slots=True)
class Mask:
    """An image file whose pixels are classes, read as the manifest's `MaskValues` say.

    digest: SHA-256 of the file's bytes in hex; classes: those that some pixel has. Both are empty
    until the file was read.
    """

    path: Path
    digest: str = ""
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MaskValues:
    """What the pixels of masks stand for.

    classes: by the value of a pixel, a grey level or palette index, or `r,g,b` of a colour;
    ignored: values that count neither for nor against a model.
    """

    classes: Mapping[str, str]
    ignored: frozenset[str] = frozenset()

    @property
    def in_colour(self) -> bool:
        """Whether the values are colours."""
        return any("," in value for value in (*self.classes, *self.ignored))


def ignored_values(index: int | None) -> frozenset[str]:
    """Values of masks that count for nothing besides 255: that one, if any."""
    return frozenset() if index is None else frozenset((str(index),))


# A class name, boxes, or a mask.
Truth = str | tuple[Box, ...] | Mask


def values_text(values: MaskValues | None) -> str:
    """One line of text, which `values_from` reads."""
    if values is None:
        return ""
    return json.dumps({"classes": dict(values.classes), "ignored": sorted(values.ignored)})


def values_from(text: str) -> MaskValues | None:
    """What `values_text` wrote."""
    if not text:
        return None
    found = json.loads(text)
    return MaskValues(found["classes"], frozenset(found["ignored"]))


def classes_in(truth: Truth) -> frozenset[str]:
    """Names of the classes that the image shows."""
    if isinstance(truth, str):
        return frozenset((truth,))
    if isinstance(truth, Mask):
        return frozenset(truth.classes)
    return frozenset(box.label for box in truth)


def label_of(truth: Truth) -> str:
    """Name of the class of the image; of several classes, all of their names."""
    return ", ".join(sorted(classes_in(truth)))


def identity(truth: Truth) -> str:
    """What two images with the same truth share; paths do not count."""
    if isinstance(truth, str):
        return truth
    if isinstance(truth, Mask):
        return truth.digest
    return as_text(tuple(sorted(truth)))


def as_text(truth: Truth) -> str:
    """One line of text, which `from_text` reads."""
    if isinstance(truth, str):
        return truth
    if isinstance(truth, Mask):
        return json.dumps({**asdict(truth), "path": str(truth.path)})
    return json.dumps([[box.label, box.xmin, box.ymin, box.xmax, box.ymax] for box in truth])


def from_text(task: TaskName, text: str) -> Truth:
    """The truth that `as_text` wrote."""
    if task == "classification":
        return text
    values = json.loads(text)
    if task == "segmentation":
        return Mask(Path(values["path"]), values["digest"], tuple(values["classes"]))
    return tuple(Box(*cells) for cells in values)


def task_named(word: str) -> TaskName:
    """The task of that name; classification where none is named."""
    return next((name for name in TASK_NAMES if name == word), "classification")


def task_of(truths: Iterable[Truth]) -> TaskName:
    """The task that truths of this kind are for; classification where there are none."""
    first = next(iter(truths), "")
    if isinstance(first, str):
        return "classification"
    return "segmentation" if isinstance(first, Mask) else "detection"
