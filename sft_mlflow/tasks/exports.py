"""Scores in forms that other programs read: COCO's JSON, and masks as PNG files.

Both are made of the finished rows, so they can be had at any time, and say the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sft_mlflow.data.ordered import THREADS, ordered_map
from sft_mlflow.tasks.pictures import colours
from sft_mlflow.whole_file import whole_file, whole_folder

Row = Mapping[str, Any]

CLASSES = "classes.txt"
# By which an export is known again, so that the same call may replace it.
MARK = "_scores.json"
MADE_BY = {"contributor": "sft_mlflow score"}
# The last line of a JSON, of what stands before it.
_DIGEST = '"digest": "{}"}}\n'
_DIGEST_BYTES = len(_DIGEST.format("0" * 64))
_PIECE_BYTES = 2**20


class Rows(Protocol):
    """All rows of an output from the first on, as often as they are asked for."""

    def __call__(self, columns: Sequence[str] | None = None) -> Iterable[Row]:
        """columns: only these, where that is enough."""


class Export(Protocol):
    """Scores in another form."""

    def __call__(self, rows: Rows, classes: Sequence[str], root: Path, path: Path) -> Iterator[int]:
        """Write them to `path`, whole or not at all; after each image how many there were.

        root: folder that all images are below.
        """


@dataclass(frozen=True)
class Annotated:
    """An image as COCO describes it.

    annotations: each with `label`, and without numbers; made when they are asked for.
    """

    path: Path
    width: int
    height: int
    annotations: Iterable[Mapping[str, Any]]


def coco(
    annotated: Callable[[Iterable[Row]], Iterator[Annotated]],
    rows: Rows,
    classes: Sequence[str],
    root: Path,
    path: Path,
) -> Iterator[int]:
    """Write one JSON file with images, categories and annotations.

    annotated: images of rows, without those that could not be read. `file_name` starts at the
    root; images, annotations and categories are numbered from 1.
    """
    category = {name: number for number, name in enumerate(classes, 1)}
    info = {**MADE_BY, "description": f"file names start at {root}"}
    categories = [{"id": number, "name": name} for name, number in category.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    # In two passes, and piece by piece: there may be more annotations than fit into memory.
    with whole_file(path) as beside, beside.open("w", encoding="utf-8") as file:
        # The first line alone tells whose it is.
        file.write(f'{{"info": {json.dumps(info)},\n"images": [')
        images = (
            {
                "id": number,
                "file_name": one.path.relative_to(root).as_posix(),
                "width": one.width,
                "height": one.height,
            }
            for number, one in enumerate(annotated(rows()), 1)
        )
        yield from _listed(file, images)
        file.write(f'],\n"categories": {json.dumps(categories)},\n"annotations": [')
        numbers = count(1)
        annotations = (
            {
                "id": next(numbers),
                "image_id": number,
                "category_id": category[annotation["label"]],
                "iscrowd": 0,
                **{key: value for key, value in annotation.items() if key != "label"},
            }
            for number, one in enumerate(annotated(rows()), 1)
            for annotation in one.annotations
        )
        for _ in _listed(file, annotations):
            pass
        file.write("],\n")
        file.flush()
        # What anybody changes makes it another file.
        file.write(_DIGEST.format(_digest(beside, beside.stat().st_size)))


def is_export(path: Path) -> bool:
    """Whether a JSON file is as `coco` wrote it."""
    try:
        with path.open(encoding="utf-8") as file:
            first = json.loads(file.readline().rstrip().rstrip(",") + "}")
        body = path.stat().st_size - _DIGEST_BYTES
        with path.open("rb") as file:
            file.seek(max(0, body))
            last = file.read().decode()
    except (ValueError, OSError):
        return False
    ours = isinstance(first, dict) and MADE_BY.items() <= dict(first.get("info") or {}).items()
    return ours and last == _DIGEST.format(_digest(path, body))


def _digest(path: Path, size: int) -> str:
    """Of the first bytes of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (piece := file.read(min(size, _PIECE_BYTES))):
            found.update(piece)
            size -= len(piece)
    return found.hexdigest()


def masks(
    indices: Callable[[Row, Sequence[str]], NDArray[np.uint8]],
    rows: Rows,
    classes: Sequence[str],
    root: Path,
    folder: Path,
) -> Iterator[int]:
    """Write a palette PNG of class indices for each image, and `classes.txt`, a name a line.

    indices: the mask of a row. A mask lies below the folder as its image below the root, and is
    named like it, as no other is.
    """
    palette = [value for colour in colours(len(classes)) for value in colour]
    with whole_folder(folder) as beside:

        def write(row: Row) -> None:
            picture = Image.fromarray(indices(row, classes))
            picture.putpalette(palette)
            path = beside / path_of(row).relative_to(root).with_suffix(".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path, "PNG")

        readable = (row for row in rows() if row["error"] is None)
        for done, _ in enumerate(ordered_map(write, readable, ahead=4 * THREADS), 1):
            yield done
        (beside / CLASSES).write_text("".join(f"{n}\n" for n in classes), encoding="utf-8")
        (beside / MARK).write_text(json.dumps(MADE_BY))


def path_of(row: Row) -> Path:
    """Of its image, without detours: a table may say `labels/../images/a.jpg`."""
    return Path(os.path.normpath(row["path"]))


def by_image(rows: Iterable[Row], of: Callable[[Row], int]) -> Iterator[list[Row]]:
    """The rows of one image after the other. of: how many an image has, from its first one."""
    remaining = iter(rows)
    for first in remaining:
        yield [first, *islice(remaining, of(first) - 1)]


def _listed(file: TextIO, items: Iterable[Mapping[str, Any]]) -> Iterator[int]:
    for done, item in enumerate(items, 1):
        file.write(f"{',' if done > 1 else ''}\n{json.dumps(item)}")
        yield done
