"""Plain tables of how a model does on test images. Tasks fill them, the report shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Interval(NamedTuple):
    """A figure with its interval of 95 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Bin:
    """One bar of the reliability diagram: mean confidence and accuracy of `count` images."""

    low: float
    high: float
    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True)
class Reliability:
    """What temperature scaling did to the test probabilities: expected error and bins."""

    temperature: float
    ece_before: float
    ece_after: float
    before: tuple[Bin, ...]
    after: tuple[Bin, ...]


@dataclass(frozen=True)
class ClassRow:
    """How one class fares.

    count: its images, objects or pixels; values: as `ClassTable.columns` name them,
    the last one leads; nan where there is none.
    """

    name: str
    count: int
    values: tuple[float, ...]

    @property
    def lead(self) -> float:
        """The figure that classes are compared by."""
        return self.values[-1]


@dataclass(frozen=True)
class ClassTable:
    """Figures by class, in the order of the classes. counted: what the counts are of."""

    counted: str
    columns: tuple[str, ...]
    rows: tuple[ClassRow, ...]


@dataclass(frozen=True)
class Confusion:
    """counts: row is the true class, column the predicted one, both named by `names`.

    unit: what is counted.
    """

    names: tuple[str, ...]
    counts: NDArray[np.int64]
    unit: str


@dataclass(frozen=True, eq=False)
class Curve:
    """Precision over recall of one class."""

    name: str
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]


class Caption(NamedTuple):
    """What is said of one image: said, in red where it is wrong, and the truth."""

    path: str
    said: str
    truth: str
    wrong: bool


class Picture(NamedTuple):
    """An image with truth and answer as a small JPEG, and what to write below."""

    caption: Caption
    jpeg: bytes


class Heading(NamedTuple):
    """What some images are called, and in a sentence what they are."""

    title: str
    hint: str


_WORST = Heading("Worst images", "Truth at the left, answer at the right; the worst first.")
_TYPICAL = Heading("Typical images", "Those about the median.")


@dataclass(frozen=True, eq=False)
class TestFigures:
    """How the best model does on the test side.

    figures: by plain name (`accuracy`), the first one leads the report; further: more of them,
    without intervals; calibration, curves: of tasks that have them; worst, typical: images, with
    what to call them; wide_pictures: whether each is two beside each other.
    """

    __test__ = False  # pytest takes a class of this name for a test

    images: int
    figures: Mapping[str, Interval]
    per_class: ClassTable
    confusion: Confusion
    further: Mapping[str, float] | None = None
    calibration: Reliability | None = None
    curves: tuple[Curve, ...] = ()
    worst: tuple[Picture, ...] = ()
    typical: tuple[Picture, ...] = ()
    worst_are: Heading = _WORST
    typical_are: Heading = _TYPICAL
    wide_pictures: bool = True
