"""CSV, TSV and Parquet tables as a stream of rows of text, and the files that they name."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sft_mlflow.errors import DataError

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_PARQUET = frozenset((".parquet", ".pq"))

Row = dict[str, str]


def is_table(path: Path) -> bool:
    """Whether the path is a file with the suffix of a table."""
    return path.suffix.lower() in _PARQUET | _DELIMITERS.keys() and path.is_file()


def table_rows(
    table: Path, *, needed: Sequence[str], optional: Sequence[str]
) -> Iterator[tuple[int, Row]]:
    """Line (CSV) or row from 1 (Parquet), and the cells of those columns that the table has.

    Names of columns are compared without case and spaces; an empty cell is "". Holds no more than
    a row group. Raises DataError for what is no such table, or lacks a needed column.
    """
    read = _parquet if table.suffix.lower() in _PARQUET else _csv
    return read(table, needed, optional)


def columns_of(table: Path) -> set[str]:
    """Names of its columns, without case and spaces; empty where it cannot be read as a table."""
    try:
        if table.suffix.lower() in _PARQUET:
            names = pq.read_schema(table).names
        else:
            with table.open(newline="", encoding="utf-8-sig") as file:
                names = next(csv.reader(file, delimiter=_DELIMITERS[table.suffix.lower()]), [])
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError, csv.Error):
        # Whoever reads its rows says what is wrong with it.
        return set()
    return {name.strip().lower() for name in names}


def saved(table: Path) -> dict[str, str]:
    """What a saved manifest keeps in its schema: name, task and more; else nothing."""
    if table.suffix.lower() not in _PARQUET:
        return {}
    try:
        metadata: dict[bytes, bytes] = pq.read_schema(table).metadata or {}
    except (pa.ArrowInvalid, OSError):
        # Whoever reads its rows says what is wrong with it.
        return {}
    known = (b"name", b"task", b"classes", b"mask_values")
    return {key.decode(): metadata[key].decode() for key in known if key in metadata}


def _csv(table: Path, needed: Sequence[str], optional: Sequence[str]) -> Iterator[tuple[int, Row]]:
    try:
        # utf-8-sig: spreadsheets put a byte order mark first.
        with table.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, delimiter=_DELIMITERS[table.suffix.lower()])
            kept = _positions(table, next(lines, []), needed, optional)
            for cells in lines:
                if any(cell.strip() for cell in cells):
                    row = {name: cells[i] if i < len(cells) else "" for name, i in kept.items()}
                    yield lines.line_num, row
    except UnicodeDecodeError as error:
        raise DataError(f"{table}: not UTF-8 text ({error}). Save it as UTF-8.") from error
    except csv.Error as error:
        raise DataError(f"{table}: not a CSV table ({error}).") from error


def _parquet(
    table: Path, needed: Sequence[str], optional: Sequence[str]
) -> Iterator[tuple[int, Row]]:
    number = 0
    try:
        with pq.ParquetFile(table) as file:
            header = file.schema_arrow.names
            kept = {k: header[i] for k, i in _positions(table, header, needed, optional).items()}
            for batch in file.iter_batches(columns=list(kept.values())):
                for cells in batch.to_pylist():
                    number += 1
                    row = {k: "" if cells[c] is None else str(cells[c]) for k, c in kept.items()}
                    yield number, row
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{table}: not a Parquet table ({error}).") from error


def _positions(
    table: Path, header: Sequence[str], needed: Sequence[str], optional: Sequence[str]
) -> dict[str, int]:
    plain = [name.strip().lower() for name in header]
    missing = [name for name in needed if name not in plain]
    if missing:
        expected = ",".join(needed) + "".join(f"[,{name}]" for name in optional)
        raise DataError(
            f"{table}:1: no column {' and no column '.join(map(repr, missing))}; the columns are "
            f"{', '.join(map(repr, plain)) or 'none'}. Expected: {expected}."
        )
    if double := sorted({name for name in (*needed, *optional) if plain.count(name) > 1}):
        raise DataError(f"{table}:1: column {double[0]!r} is there twice. Keep one.")
    return {name: plain.index(name) for name in (*needed, *optional) if name in plain}


def beside(table: Path, path: str) -> Path:
    """A file that a table names, seen from where the table is."""
    # os.path's leaves a name such as `~tmp.jpg` as it is.
    return table.parent / os.path.expanduser(path)
