"""Files and folders that are there whole or not at all, however their writer ends."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sft_mlflow.errors import OptionsError

_PARTIAL = ".partial"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; what is there takes its place when the block ends well."""
    beside = _beside(path)
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path` to write into, which takes its place when the block ends well."""
    beside = _beside(path)
    beside.mkdir(parents=True)
    try:
        yield beside
        take_place(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def make_folder_of(path: Path, option: str) -> None:
    """Have the folder of a file that an option names. Raises OptionsError if it can't be had."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionsError(f"{option} {path}: no folder for it ({error.strerror}).") from error
    if not os.access(path.parent, os.W_OK):
        raise OptionsError(f"{option} {path}: nothing may be written to its folder.")


def take_place(new: Path, path: Path) -> None:
    """Rename a file or folder to a path where there may be something, even a full folder."""
    aside = None
    if path.is_dir() or (path.exists() and new.is_dir()):
        # Nothing can be renamed onto it.
        aside = path.with_name(f".{path.name}.replaced")
        _remove(aside)
        os.replace(path, aside)
    os.replace(new, path)
    if aside is not None:
        _remove(aside)


def remove_abandoned(folder: Path, older_than_seconds: float = 0.0) -> None:
    """Remove what writers that were killed have left half-written in a folder.

    older_than_seconds: by when a file that is still being written would have been touched.
    """
    for left in folder.glob(f"*{_PARTIAL}"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime >= older_than_seconds:
                _remove(left)


def _beside(path: Path) -> Path:
    # By process, since workers may write the same file at once; the last one wins.
    return path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
