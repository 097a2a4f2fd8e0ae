"""What a reader returns: files with labels, before any byte of them is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sft_mlflow.data.manifest import Split

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
    """One listed file. path: absolute; split: None where the source gives none."""

    path: Path
    label: str
    split: Split | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of one source, in an order that is the same on every machine.

    strays: image files that belong to no class; they are reported and not used.
    """

    name: str
    uri: str
    entries: tuple[Entry, ...]
    strays: tuple[Path, ...] = ()
