"""What a reader returns: image files and what is true of them, before any byte of them is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sft_mlflow.data.findings import Finding
from sft_mlflow.data.manifest import Split
from sft_mlflow.data.truth import MaskValues, TaskName, Truth, label_of, task_of

# The words people use for the three sides, in folders and in tables.
SPLIT_WORDS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One listed file. path: absolute; split: None where the source gives none.

    lost: whether it shows objects that the reader had to leave out.
    """

    path: Path
    truth: Truth
    split: Split | None = None
    group: str | None = None
    lost: bool = False

    @property
    def label(self) -> str:
        """Name of its class; of several, all of them."""
        return label_of(self.truth)


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of one source, in an order that is the same on every machine.

    strays: image files that belong to no class; they are reported and not used. classes: as the
    source declares them, empty where it does not; mask_values: what the pixels of its masks stand
    for; relative: whether boxes are shares of the image's sides instead of pixels; findings: what
    its annotation files have wrong.
    """

    name: str
    uri: str
    entries: tuple[Entry, ...]
    strays: tuple[Path, ...] = ()
    classes: tuple[str, ...] = ()
    mask_values: MaskValues | None = None
    relative: bool = False
    findings: tuple[Finding, ...] = ()

    @property
    def task(self) -> TaskName:
        """What can be learnt from it."""
        return task_of(entry.truth for entry in self.entries)
