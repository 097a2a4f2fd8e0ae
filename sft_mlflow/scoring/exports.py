"""Where scores go in other forms than rows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sft_mlflow.errors import OptionsError
from sft_mlflow.scoring.inputs import Inputs
from sft_mlflow.scoring.score import read_scores
from sft_mlflow.tasks.base import Task
from sft_mlflow.tasks.exports import MARK, Export, Row, is_export, path_of
from sft_mlflow.whole_file import make_folder_of

FOLDERS = ("masks",)


@dataclass(frozen=True)
class Target:
    """A form of scores and where it is written to. is_folder: else it is one file."""

    path: Path
    is_folder: bool
    export: Export


def targets(
    asked: Mapping[str, str], task: Task, inputs: Inputs, output: Path, *, overwrite: bool
) -> list[Target]:
    """What is asked for beside the output, by the names of options with paths, "" for nothing.

    An earlier export is replaced, since it can be made again; one that somebody changed, and
    another file, only with `overwrite`; another folder never.
    Raises OptionsError that names every path which cannot be written to, every form that scores of
    the task do not have, and two images whose files would be the same.
    """
    found, problems = [], []
    taken = {_absolute(output)}
    for name, text in asked.items():
        if not text:
            continue
        path, export = _absolute(Path(text)), task.answering.exports.get(name)
        if export is None:
            problems.append(f"--{name} {text}: scores of {task.name} have no such form; leave out.")
            continue
        problem = "is written to already" if path in taken else _in_the_way(name, path, overwrite)
        if problem:
            problems.append(f"--{name} {text}: {problem}. Choose another path.")
        if name in FOLDERS and (same := _of_one_name(inputs)):
            problems.append(
                f"--{name} {text}: {same[0]} and {same[1]} would have the same file. Rename one of "
                "them, or score them apart."
            )
        taken.add(path)
        found.append(Target(path, name in FOLDERS, export))
    if problems:
        raise OptionsError("\n".join(problems))
    for target in found:
        make_folder_of(target.path, "output:")
    return found


def write(target: Target, inputs: Inputs, output: Path, classes: Sequence[str]) -> Iterator[int]:
    """Write the rows of a finished output; after each image how many there were.

    Paths of images begin at the folder of a file that is written above them, else at that of the
    inputs, else at the one that all of them are below.
    """
    rows = partial(_rows, output)
    folder = inputs.root if inputs.root.is_dir() else inputs.root.parent
    preferred = (folder,) if target.is_folder else (target.path.parent, folder)
    root = _root(rows(("path",)), preferred)
    return target.export(rows, classes, root, target.path)


def _rows(output: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    for batch in read_scores(output, columns):
        yield from batch.to_pylist()


def _root(rows: Iterable[Row], preferred: Sequence[Path]) -> Path:
    common: Path | None = None
    for row in rows:
        above = path_of(row).parent
        common = above if common is None else Path(os.path.commonpath((common, above)))
    assert common is not None
    return next((one for one in map(_absolute, preferred) if common.is_relative_to(one)), common)


def _in_the_way(name: str, path: Path, overwrite: bool) -> str | None:
    """Why nothing can be written there."""
    if name in FOLDERS:
        return _in_the_way_of_folder(path, overwrite)
    if path.is_dir():
        return "is a folder"
    if path.exists() and not overwrite and not is_export(path):
        return "exists, and is replaced only with --overwrite yes"
    return None


def _in_the_way_of_folder(path: Path, overwrite: bool) -> str | None:
    if not path.is_dir():
        return "is a file" if path.exists() else None
    if not any(path.iterdir()):
        return None
    if not (path / MARK).is_file():
        return "is a folder with other things"
    if not overwrite and (newer := _newer(path)) is not None:
        return f"{newer} is newer than the export, and replaced only with --overwrite yes"
    return None


def _newer(folder: Path) -> Path | None:
    """A file of an exported folder that somebody changed or added; its mark was written last."""
    written = (folder / MARK).stat().st_mtime_ns
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return next((path for path in files if path.stat().st_mtime_ns > written), None)


def _of_one_name(inputs: Inputs) -> tuple[str, str] | None:
    """Two images whose paths differ in nothing but the suffix."""
    known: dict[str, str] = {}
    for image in inputs:
        path = os.path.normpath(image.path)
        other = known.setdefault(os.path.splitext(path)[0], path)
        if other != path:
            return other, path
    return None


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path.expanduser()))
