"""Readers: one file a format, each from a URI to a Listing. A new one is a line in READERS."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Protocol

from sft_mlflow.data.readers import (
    cityscapes,
    coco,
    digits,
    folder,
    mask_folders,
    table,
    torchvision_sets,
    voc,
    yolo,
)
from sft_mlflow.data.readers.listing import Entry, Listing
from sft_mlflow.data.truth import TaskName, classes_in
from sft_mlflow.errors import DataError, OptionsError

__all__ = ["READERS", "Entry", "Listing", "Reader", "read", "task_for"]


class Reader(Protocol):
    """A module that reads one kind of source."""

    def tasks(self, uri: str) -> tuple[TaskName, ...]:
        """What can be learnt from the source, the likeliest first; nothing if it is of no use."""

    def read(self, uri: str, *, cache: Path, task: TaskName, ignored: frozenset[str]) -> Listing:
        """The listing for one of these tasks. Raises DataError."""


# In this order: a known name wins over a folder of that name, which `./name` still reaches, and a
# layout that says more over class folders.
READERS: tuple[Reader, ...] = (
    digits,
    torchvision_sets,
    table,
    coco,
    voc,
    yolo,
    cityscapes,
    mask_folders,
    folder,
)


def read(
    uri: str,
    *,
    cache: Path,
    task: TaskName | None = None,
    ignored: frozenset[str] = frozenset(),
) -> Listing:
    """The listed files of a folder, a table, an annotation file, or a data set known by name.

    task: what is to be learnt, None for what the source is most likely for; cache: folder for data
    sets that are written or downloaded; ignored: values of masks that count for nothing. No image
    file is read.
    Raises OptionsError for a URI that is nothing known or nothing for that task, DataError for one
    that holds no images or a single class.
    """
    reader, what = _reader(uri, task)
    listing = reader.read(uri, cache=cache, task=what, ignored=ignored)
    _check_classes(listing)
    return listing


def task_for(uri: str, task: TaskName | None = None) -> TaskName:
    """What `read` would read the source for. Raises OptionsError as it does."""
    return _reader(uri, task)[1]


def _reader(uri: str, task: TaskName | None) -> tuple[Reader, TaskName]:
    possible: dict[TaskName, None] = {}
    for reader in READERS:
        tasks = reader.tasks(uri)
        # Folders of annotations are no classes.
        if not tasks or (reader is folder and possible):
            continue
        if task in (None, *tasks):
            return reader, task or tasks[0]
        possible |= dict.fromkeys(tasks)
    if possible:
        raise OptionsError(
            f"task: {uri} is laid out for {' or '.join(possible)} and not for {task}; "
            "docs/data.md names the layouts of each."
        )
    raise OptionsError(_unknown(uri))


def _check_classes(listing: Listing) -> None:
    classes = sorted(set().union(*(classes_in(entry.truth) for entry in listing.entries)))
    if listing.task == "segmentation":
        # What masks show is known when they are read.
        classes = list(listing.classes)
    elif listing.task == "detection" and listing.entries:
        # One kind of object is enough: it is there or not.
        return
    if not classes:
        raise DataError(
            f"{listing.uri}: no images found. Expected one folder a class with JPEG, PNG, WebP, "
            "TIFF, BMP or GIF files in it, a table with the columns path and label, or one of the "
            "layouts for boxes and masks (docs/data.md)."
        )
    if len(classes) == 1 and listing.task == "segmentation":
        raise DataError(
            f"{listing.uri}: its masks have one class only, {classes[0]!r}; at least two are "
            "needed. classes.txt or class_dict.csv beside them says what their values stand for."
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
        f"data: {uri!r} is no folder, no .csv, .tsv, .parquet, .json or .yaml file, and no "
        f"known data set."
        f"{hint} Known data sets: {', '.join(names)}."
    )
