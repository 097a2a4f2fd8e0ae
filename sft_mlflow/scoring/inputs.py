"""What is to be scored: a folder, a glob, a table of paths or a manifest, as a stream of images.

Nothing here holds more than one folder's names or one row group at a time, but for the paths of a
table of boxes, where an image has several rows. The order is the same on every machine and at every
reading.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from sft_mlflow.data.folders import (
    IMAGE_SUFFIXES,
    folders_below,
    images_below,
    is_clutter,
)
from sft_mlflow.data.manifest import Split
from sft_mlflow.data.readers.listing import SPLIT_WORDS
from sft_mlflow.data.tables import beside, columns_of, is_table, table_rows
from sft_mlflow.errors import DataError, OptionsError

Kind = Literal["folder", "glob", "table", "file"]

_MAGIC = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class InputImage:
    """One image to score. path: absolute; label: the true class, None where unknown."""

    path: Path
    label: str | None


@dataclass(frozen=True)
class Inputs:
    """A stream of images that can be read again and again, each time the same.

    uri: absolute; label_depth: which part of a folder's paths, counted below `root`, is the class,
    None where folders are not classes; split: the only side that is read of a table.
    """

    uri: str
    kind: Kind
    root: Path
    pattern: tuple[str, ...] = ()
    label_depth: int | None = None
    split: Split | None = None

    def __iter__(self) -> Iterator[InputImage]:
        """The images in order. Raises DataError for a table that cannot be read."""
        if self.kind == "table":
            yield from _table_rows(self.root, self.split)
        elif self.kind == "glob":
            for path in _matches(self.root, self.pattern):
                yield InputImage(path, None)
        elif self.kind == "folder":
            for path in images_below(self.root):
                yield InputImage(path, self._class_of(path))
        else:
            yield InputImage(self.root, None)

    def _class_of(self, path: Path) -> str | None:
        if self.label_depth is None:
            return None
        folders = path.relative_to(self.root).parts[:-1]
        # An image beside the class folders has no class.
        return folders[self.label_depth] if len(folders) > self.label_depth else None


@dataclass(frozen=True, slots=True)
class Survey:
    """What one reading of the inputs tells.

    digest: of paths, labels, their order, and the files' sizes and times of change, so that it
    differs where a picture was replaced under its name.
    """

    images: int
    labelled: int
    digest: str


def find(uri: str, *, classes: Collection[str], split: Split | None = None) -> Inputs:
    """The inputs behind a URI.

    - A folder: every image file below it by its suffix, folders in the order of their names. If
      each folder at the top (or below train, valid, test ones) is named as one of the model's
      classes, their names are the labels of the images in them; else there are none.
    - A glob (`shots/2024-*/**/*.jpg`): every matching file, without labels.
    - A CSV, TSV or Parquet table: column `path`, relative to the table's folder, and, if any,
      `label`. A saved manifest is such a table: all its sides are scored, or the one that `split`
      names.
    - A single image file.

    classes: of the model that will score.
    Raises OptionsError for a URI that is none of these, or a split where there can be none.
    """
    inputs = _find(uri, classes, split)
    if split is not None and inputs.kind != "table":
        raise OptionsError(
            f"split: {uri!r} is a {inputs.kind}, and only a table says which side an image is "
            "on. Leave split out, or give the folder of that side."
        )
    return inputs


def survey(inputs: Inputs) -> Survey:
    """Number and digest of the images, from one listing; no image file is opened.

    Raises DataError where there are none, or for a table that cannot be read.
    """
    hashed, images, labelled = hashlib.sha256(), 0, 0
    for image in inputs:
        images += 1
        labelled += image.label is not None
        label = "\0" if image.label is None else image.label
        # surrogateescape: a file name may be any bytes.
        text = f"{image.path}\0{label}\0{_state(image.path)}\n"
        hashed.update(text.encode(errors="surrogateescape"))
    if images == 0:
        side = f" on side {inputs.split!r}" if inputs.split else ""
        raise DataError(
            f"{inputs.uri}: no images found{side}. A folder is searched for "
            f"{', '.join(sorted(IMAGE_SUFFIXES))} files; for other names give a glob or a table."
        )
    return Survey(images, labelled, hashed.hexdigest())


def _state(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError:
        return ""
    return f"{stat.st_size}\0{stat.st_mtime_ns}"


def _find(uri: str, classes: Collection[str], split: Split | None) -> Inputs:
    path = Path(uri).expanduser()
    # Not resolved: a link's own name is the one that the user knows.
    place = Path(os.path.abspath(path))
    if path.is_dir():
        return Inputs(str(place), "folder", place, label_depth=_label_depth(place, classes))
    if is_table(path):
        return Inputs(str(place), "table", place, split=split)
    if path.is_file():
        return Inputs(str(place), "file", place)
    magic = [bool(_MAGIC & set(part)) for part in place.parts]
    if any(magic):
        first = magic.index(True)
        return Inputs(str(place), "glob", Path(*place.parts[:first]), place.parts[first:])
    raise OptionsError(_unknown(uri, place))


def _unknown(uri: str, place: Path) -> str:
    try:
        beside = sorted(entry.name for entry in place.parent.iterdir())
    except OSError:
        beside = []
    near = difflib.get_close_matches(place.name, beside, n=1)
    hint = f" Did you mean {str(Path(uri).parent / near[0])!r}?" if near else ""
    return (
        f"input: {uri!r} is no folder, no file and no glob.{hint} Give a folder of images, a glob "
        "in quotes, or a CSV or Parquet table with a column path."
    )


def _label_depth(root: Path, classes: Collection[str]) -> int | None:
    """0 where the folders at the top are classes, 1 where those below split folders are."""
    folders, _ = _listed(root)
    if folders and set(folders) <= set(classes):
        return 0
    if not folders or not all(name.lower() in SPLIT_WORDS for name in folders):
        return None
    below: set[str] = set()
    for name in folders:
        below.update(_listed(root / name)[0])
    return 1 if below and below <= set(classes) else None


def _listed(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in a folder, each sorted, without clutter."""
    folders: list[str] = []
    files: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not is_clutter(entry.name):
                (folders if entry.is_dir() else files).append(entry.name)
    return sorted(folders), sorted(files)


def _matches(folder: Path, pattern: Sequence[str]) -> Iterator[Path]:
    """Files that match, as `glob` with recursive=True, but in a fixed order and as a stream."""
    if not folder.is_dir():
        return
    head, rest = pattern[0], pattern[1:]
    if head == "**":
        for below, _ in folders_below(folder):
            yield from _matches(below, rest or ("*",))
        return
    folders, files = _listed(folder)
    if rest:
        for name in folders:
            if fnmatchcase(name, head):
                yield from _matches(folder / name, rest)
    else:
        for name in files:
            if fnmatchcase(name, head):
                yield folder / name


def _table_rows(table: Path, split: Split | None) -> Iterator[InputImage]:
    # Of a table of boxes, whose rows are no images and whose labels are those of objects.
    listed: set[str] = set()
    boxes = "xmin" in columns_of(table)
    for number, row in table_rows(table, needed=("path",), optional=("label", "split")):
        if split is not None:
            if "split" not in row:
                raise OptionsError(
                    f"split: {table} has no column 'split'. Leave split out to score all rows."
                )
            if SPLIT_WORDS.get(row["split"].strip().lower()) != split:
                continue
        path = row["path"].strip()
        if not path:
            raise DataError(f"{table}:{number}: no path. Fill it in or remove the row.")
        if boxes and path in listed:
            continue
        if boxes:
            listed.add(path)
        label = "" if boxes else row.get("label", "").strip()
        yield InputImage(beside(table, path), label or None)
