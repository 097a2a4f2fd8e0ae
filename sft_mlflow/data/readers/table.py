"""CSV, TSV and Parquet tables of image paths and labels."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sft_mlflow.data.readers.listing import SPLIT_WORDS, Entry, Listing
from sft_mlflow.errors import DataError

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_PARQUET = (".parquet", ".pq")
_COLUMNS = ("path", "label", "split", "group")
_SHOWN_ERRORS = 10

Row = dict[str, str]


def accepts(uri: str) -> bool:
    """Whether the URI is a file with the suffix of a table."""
    path = Path(uri).expanduser()
    return path.suffix.lower() in (*_DELIMITERS, *_PARQUET) and path.is_file()


def read(uri: str, *, cache: Path) -> Listing:
    """The rows of the table, in its order: columns path, label and, if any, split and group.

    A relative path starts at the table's own folder; other columns are ignored; an empty split
    or group is none. cache is not used. Whether the files exist is for the scan to find.
    Raises DataError that names each wrong row as file:line (CSV) or file:row (Parquet, from 1).
    """
    del cache
    table = Path(uri).expanduser().resolve()
    name, rows = table.stem, _csv_rows(table)
    if table.suffix.lower() in _PARQUET:
        name, rows = _parquet_rows(table)
    return Listing(name, str(table), _entries(table, rows))


def _csv_rows(table: Path) -> Iterator[tuple[int, Row]]:
    try:
        # utf-8-sig: spreadsheets put a byte order mark first.
        with table.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, delimiter=_DELIMITERS[table.suffix.lower()])
            header = [name.strip().lower() for name in next(lines, [])]
            _check_header(table, header)
            for cells in lines:
                if any(cell.strip() for cell in cells):
                    yield lines.line_num, dict(zip(header, cells, strict=False))
    except UnicodeDecodeError as error:
        raise DataError(f"{table}: not UTF-8 text ({error}). Save it as UTF-8.") from error
    except csv.Error as error:
        raise DataError(f"{table}: not a CSV table ({error}).") from error


def _parquet_rows(table: Path) -> tuple[str, Iterator[tuple[int, Row]]]:
    try:
        content = pq.read_table(table)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{table}: not a Parquet table ({error}).") from error
    header = [name.strip().lower() for name in content.column_names]
    _check_header(table, header)
    kept = content.rename_columns(header).select([name for name in _COLUMNS if name in header])
    rows = (
        (number, {name: "" if cell is None else str(cell) for name, cell in row.items()})
        for number, row in enumerate(kept.to_pylist(), start=1)
    )
    # A saved manifest keeps its name there.
    metadata = content.schema.metadata or {}
    return metadata.get(b"name", table.stem.encode()).decode(), rows


def _check_header(table: Path, header: list[str]) -> None:
    missing = [name for name in ("path", "label") if name not in header]
    if missing:
        raise DataError(
            f"{table}:1: no column {' and no column '.join(map(repr, missing))}; the columns are "
            f"{', '.join(map(repr, header)) or 'none'}. Expected: path,label[,split][,group]."
        )
    double = sorted({name for name in _COLUMNS if header.count(name) > 1})
    if double:
        raise DataError(f"{table}:1: column {double[0]!r} is there twice. Keep one.")


def _entries(table: Path, rows: Iterable[tuple[int, Row]]) -> tuple[Entry, ...]:
    entries, errors = [], []
    for number, row in rows:
        path, label, split, group = (row.get(name, "").strip() for name in _COLUMNS)
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
    return table.parent / Path(path).expanduser()
