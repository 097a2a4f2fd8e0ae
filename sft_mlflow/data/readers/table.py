"""CSV, TSV and Parquet tables of image paths and labels, one row an image or one a box."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from sft_mlflow.data.manifest import Split
from sft_mlflow.data.readers.listing import SPLIT_WORDS, Entry, Listing
from sft_mlflow.data.tables import Row, beside, columns_of, is_table, saved, table_rows
from sft_mlflow.data.truth import Box, TaskName, from_text, task_named, values_from
from sft_mlflow.errors import DataError

_NEEDED = ("path", "label")
_EDGES = ("xmin", "ymin", "xmax", "ymax")
_OPTIONAL = ("split", "group")
_SHOWN_ERRORS = 10


def tasks(uri: str) -> tuple[TaskName, ...]:
    """Detection for a table of boxes; else what it was saved for, or classification."""
    table = Path(uri).expanduser()
    if not is_table(table):
        return ()
    if set(_EDGES) <= columns_of(table):
        return ("detection",)
    return (task_named(saved(table).get("task", "")),)


def read(uri: str, *, cache: Path, task: TaskName, ignored: frozenset[str]) -> Listing:
    """The images of the table, in its order: columns path, label and, if any, split and group.

    With the columns xmin, ymin, xmax and ymax, in pixels, a row is a box, and the rows of one path
    are an image; a row with a path alone is an image that shows nothing. A relative path starts at
    the table's own folder; other columns are ignored; an empty split or group is none. cache and
    ignored are not used. Whether the files exist is for the scan to find.
    Raises DataError that names each wrong row as file:line (CSV) or file:row (Parquet, from 1).
    """
    del cache, ignored
    table = Path(uri).expanduser().resolve()
    about = saved(table)
    by_box = "task" not in about and task == "detection"
    needed = (*_NEEDED, *_EDGES) if by_box else _NEEDED
    entries = _entries(table, table_rows(table, needed=needed, optional=_OPTIONAL), by_box)
    return Listing(
        about.get("name", table.stem),
        str(table),
        tuple(replace(e, truth=from_text(task, e.label)) for e in entries) if about else entries,
        classes=tuple(json.loads(about.get("classes", "[]"))),
        mask_values=values_from(about.get("mask_values", "")),
    )


def _entries(table: Path, rows: Iterable[tuple[int, Row]], by_box: bool) -> tuple[Entry, ...]:
    entries: list[Entry] = []
    boxes: dict[Path, list[Box]] = {}
    sides: dict[Path, tuple[Split | None, str]] = {}
    errors: list[str] = []
    for number, row in rows:
        where = f"{table}:{number}"
        path, label, split, group = (row.get(name, "").strip() for name in (*_NEEDED, *_OPTIONAL))
        side = SPLIT_WORDS.get(split.lower())
        file = beside(table, path)
        edges = [row.get(name, "").strip() for name in _EDGES]
        shows_nothing = by_box and not label and not any(edges)
        if not path:
            errors.append(f"{where}: no path.")
        elif not label and not shows_nothing:
            errors.append(f"{where}: no label for {path!r}.")
        elif split and side is None:
            near = difflib.get_close_matches(split.lower(), SPLIT_WORDS, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else "."
            errors.append(f"{where}: split {split!r} is none of train, valid, test{meant}")
        elif by_box:
            if file not in boxes:
                entries.append(Entry(file, (), side, group or None))
            of_file = boxes.setdefault(file, [])
            known = sides.setdefault(file, (side, group))
            if known != (side, group):
                errors.append(f"{where}: split or group of {path!r} is not that of its first row.")
            if not shows_nothing:
                try:
                    xmin, ymin, xmax, ymax = map(float, edges)
                    of_file.append(Box(label, xmin, ymin, xmax, ymax, where))
                except ValueError:
                    errors.append(f"{where}: {', '.join(edges)} are not four numbers.")
        else:
            entries.append(Entry(file, label, side, group or None))
    if errors:
        rest = [f"… and {len(errors) - _SHOWN_ERRORS} more."] if len(errors) > _SHOWN_ERRORS else []
        raise DataError("\n".join(errors[:_SHOWN_ERRORS] + rest))
    if by_box:
        return tuple(replace(entry, truth=tuple(boxes[entry.path])) for entry in entries)
    return tuple(entries)
