"""Text files that users write."""

from __future__ import annotations

from pathlib import Path

from sft_mlflow.errors import DataError


def lines_of(path: Path) -> list[str]:
    """The lines of a UTF-8 file, with or without a byte order mark. Raises DataError."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no UTF-8 text ({error.reason}). Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
