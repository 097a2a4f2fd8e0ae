"""Readers: one file a format, each from a URI to a Listing. A new one is a line in READERS."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Protocol

from sft_mlflow.data.readers import digits, folder, table, torchvision_sets
from sft_mlflow.data.readers.listing import Entry, Listing
from sft_mlflow.errors import DataError, OptionsError

__all__ = ["READERS", "Entry", "Listing", "Reader", "read"]


class Reader(Protocol):
    """A module that reads one kind of source."""

    def accepts(self, uri: str) -> bool:
        """Whether the source is of this reader's kind."""

    def read(self, uri: str, *, cache: Path) -> Listing:
        """The listing. Raises DataError."""


# In this order: a known name wins over a folder of that name, which `./name` still reaches.
READERS: tuple[Reader, ...] = (digits, torchvision_sets, table, folder)


def read(uri: str, *, cache: Path) -> Listing:
    """The listed files of a folder, a CSV or Parquet table, or a data set known by name.

    cache: folder for data sets that are written or downloaded. No image file is read.
    Raises OptionsError for a URI that is nothing known, DataError for one that holds no images
    or a single class.
    """
    for reader in READERS:
        if reader.accepts(uri):
            listing = reader.read(uri, cache=cache)
            _check_classes(listing)
            return listing
    raise OptionsError(_unknown(uri))


def _check_classes(listing: Listing) -> None:
    classes = sorted({entry.label for entry in listing.entries})
    if not classes:
        raise DataError(
            f"{listing.uri}: no images found. Expected one folder a class with JPEG, PNG, WebP, "
            "TIFF, BMP or GIF files in it, or a table with the columns path and label."
        )
    if len(classes) == 1:
        raise DataError(
            f"{listing.uri}: only one class, {classes[0]!r}; at least two are needed. If "
            f"{classes[0]!r} is the folder that holds the class folders, give that one instead."
        )


def _unknown(uri: str) -> str:
    names = (digits.NAME, *torchvision_sets.NAMES)
    path = Path(uri).expanduser()
    try:
        beside = {entry.name: str(path.parent / entry.name) for entry in path.parent.iterdir()}
    except OSError:
        beside = {}
    candidates = {name: name for name in names} | {
        name: full for name, full in beside.items() if not name.startswith(".")
    }
    lowered = {name.lower(): full for name, full in candidates.items()}
    near = difflib.get_close_matches(path.name.lower(), lowered, n=1)
    hint = f" Did you mean {lowered[near[0]]!r}?" if near else ""
    return (
        f"data: {uri!r} is no folder, no .csv, .tsv or .parquet file, and no known data set."
        f"{hint} Known data sets: {', '.join(names)}."
    )
