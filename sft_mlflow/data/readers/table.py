"""CSV, TSV and Parquet tables of image paths and labels."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

from sft_mlflow.data.readers.listing import SPLIT_WORDS, Entry, Listing
from sft_mlflow.data.tables import Row, is_table, saved_name, table_rows
from sft_mlflow.errors import DataError

_NEEDED = ("path", "label")
_OPTIONAL = ("split", "group")
_SHOWN_ERRORS = 10


def accepts(uri: str) -> bool:
    """Whether the URI is a file with the suffix of a table."""
    return is_table(Path(uri).expanduser())


def read(uri: str, *, cache: Path) -> Listing:
    """The rows of the table, in its order: columns path, label and, if any, split and group.

    A relative path starts at the table's own folder; other columns are ignored; an empty split
    or group is none. cache is not used. Whether the files exist is for the scan to find.
    Raises DataError that names each wrong row as file:line (CSV) or file:row (Parquet, from 1).
    """
    del cache
    table = Path(uri).expanduser().resolve()
    entries = _entries(table, table_rows(table, needed=_NEEDED, optional=_OPTIONAL))
    return Listing(saved_name(table), str(table), entries)


def _entries(table: Path, rows: Iterable[tuple[int, Row]]) -> tuple[Entry, ...]:
    entries, errors = [], []
    for number, row in rows:
        path, label, split, group = (row.get(name, "").strip() for name in (*_NEEDED, *_OPTIONAL))
        side = SPLIT_WORDS.get(split.lower())
        if not path:
            errors.append(f"{table}:{number}: no path.")
        elif not label:
            errors.append(f"{table}:{number}: no label for {path!r}.")
        elif split and side is None:
            near = difflib.get_close_matches(split.lower(), SPLIT_WORDS, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else "."
            errors.append(f"{table}:{number}: split {split!r} is none of train, valid, test{meant}")
        else:
            entries.append(Entry(_absolute(table, path), label, side, group or None))
    if errors:
        rest = [f"… and {len(errors) - _SHOWN_ERRORS} more."] if len(errors) > _SHOWN_ERRORS else []
        raise DataError("\n".join(errors[:_SHOWN_ERRORS] + rest))
    return tuple(entries)


def _absolute(table: Path, path: str) -> Path:
    # os.path's leaves a name such as `~tmp.jpg` as it is.
    return table.parent / os.path.expanduser(path)
