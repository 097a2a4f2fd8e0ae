"""Scores in forms that other programs read: COCO's JSON, and masks as PNG files.

Both are made of the finished rows, so they can be had at any time, and differ in nothing from them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sft_mlflow.data.ordered import THREADS, ordered_map
from sft_mlflow.errors import OptionsError
from sft_mlflow.tasks.pictures import colours
from sft_mlflow.whole_file import whole_file

Row = Mapping[str, Any]
# All rows of an output from the first on, as often as they are asked for.
Rows = Callable[[], Iterable[Row]]
# Writes rows about these classes to a path, and tells after each image how many there were.
Export = Callable[[Rows, Sequence[str], Path], Iterator[int]]

CLASSES = "classes.txt"


@dataclass(frozen=True)
class Annotated:
    """An image as COCO describes it.

    annotations: each with `label`, and without numbers.
    """

    path: Path
    width: int
    height: int
    annotations: Sequence[Mapping[str, Any]]


def coco(
    annotated: Callable[[Iterable[Row]], Iterator[Annotated]],
    rows: Rows,
    classes: Sequence[str],
    path: Path,
) -> Iterator[int]:
    """Write one JSON file with images, categories and annotations that have a score.

    annotated: images of rows, without those that could not be read. `file_name` starts at the
    folder that all images are below; images, annotations and categories are numbered from 1.
    """
    root = _root(rows())
    category = {name: number for number, name in enumerate(classes, 1)}
    categories = [{"id": number, "name": name} for name, number in category.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    # In two passes, and piece by piece: there may be more annotations than fit into memory.
    with whole_file(path) as beside, beside.open("w", encoding="utf-8") as file:
        file.write(f'{{"info": {json.dumps({"description": str(root)})},\n"images": [')
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
        file.write("]}\n")


def masks(
    indices: Callable[[Row, Sequence[str]], NDArray[np.uint8]],
    rows: Rows,
    classes: Sequence[str],
    folder: Path,
) -> Iterator[int]:
    """Write a palette PNG of class indices for each image, and `classes.txt`, a name a line.

    indices: the mask of a row. A mask lies below the folder as its image below the folder that all
    images are in, and is named like it.
    Raises OptionsError where the masks of two images would have the same name.
    """
    root = _root(rows())
    palette = [value for colour in colours(len(classes)) for value in colour]
    names: set[str] = set()

    def named(row: Row) -> tuple[Row, Path]:
        inside = Path(row["path"]).relative_to(root).with_suffix(".png")
        if str(inside) in names:
            raise OptionsError(
                f"--masks: two images would have the mask {inside}. Score their folders apart."
            )
        names.add(str(inside))
        return row, folder / inside

    def write(one: tuple[Row, Path]) -> None:
        row, path = one
        picture = Image.fromarray(indices(row, classes))
        picture.putpalette(palette)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as beside:
            picture.save(beside, "PNG")

    folder.mkdir(parents=True, exist_ok=True)
    readable = (row for row in rows() if row["error"] is None)
    written = ordered_map(write, map(named, readable), ahead=4 * THREADS)
    for done, _ in enumerate(written, 1):
        yield done
    # Last: whoever finds the list finds all masks.
    with whole_file(folder / CLASSES) as beside:
        beside.write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")


def by_image(rows: Iterable[Row], of: Callable[[Row], int]) -> Iterator[list[Row]]:
    """The rows of one image after the other. of: how many an image has, from its first one."""
    remaining = iter(rows)
    for first in remaining:
        yield [first, *islice(remaining, of(first) - 1)]


def _root(rows: Iterable[Row]) -> Path:
    """The folder that all images are below."""
    root: str | None = None
    for row in rows:
        above = os.path.dirname(row["path"])
        root = above if root is None else os.path.commonpath((root, above))
    return Path(root or os.sep)


def _listed(file: TextIO, items: Iterable[Mapping[str, Any]]) -> Iterator[int]:
    for done, item in enumerate(items, 1):
        file.write(f"{',' if done > 1 else ''}\n{json.dumps(item)}")
        yield done
