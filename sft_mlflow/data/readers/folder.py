"""Class folders, with or without train, valid and test folders above them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sft_mlflow.data.folders import folders_below, images_in, is_clutter
from sft_mlflow.data.manifest import Split
from sft_mlflow.data.readers.listing import SPLIT_WORDS, Entry, Listing
from sft_mlflow.data.truth import TaskName
from sft_mlflow.errors import DataError


def tasks(uri: str) -> tuple[TaskName, ...]:
    """Classification for any folder."""
    return ("classification",) if Path(uri).expanduser().is_dir() else ()


def read(uri: str, *, cache: Path, task: TaskName, ignored: frozenset[str]) -> Listing:
    """The files below each class folder, by path; a class is the name of its folder.

    Folders named train, valid (val, validation), test are sides of the split if all folders at
    the top are such, train among them. Every file in a class folder is listed whatever its name,
    so that a file which is no image is reported; hidden files and the clutter of file managers
    are not. The arguments beside the URI are not used.
    Raises DataError where split folders and others stand side by side.
    """
    del cache, task, ignored
    root = Path(uri).expanduser().resolve()
    top = _folders(root)
    sides = {path: SPLIT_WORDS[path.name.lower()] for path in top if _is_side(path)}
    split_layout = len(sides) == len(top) and "train" in sides.values()
    if not split_layout and "train" in sides.values() and len(sides) > 1:
        others = ", ".join(repr(path.name) for path in top if path not in sides)
        raise DataError(
            f"{root}: has split folders ({', '.join(repr(p.name) for p in sides)}) and others "
            f"({others}) side by side. Move one kind away, or list the files in a CSV table."
        )
    entries: list[Entry] = []
    strays = images_in(root)
    for above, split in sides.items() if split_layout else [(root, None)]:
        if split_layout:
            strays += images_in(above)
        entries += _class_entries(above, split)
    return Listing(root.name, str(root), tuple(entries), tuple(strays))


def _is_side(path: Path) -> bool:
    return path.name.lower() in SPLIT_WORDS


def _class_entries(above: Path, split: Split | None) -> Iterator[Entry]:
    for class_folder in _folders(above):
        for path in _files_below(class_folder):
            yield Entry(path, class_folder.name, split)


def _files_below(folder: Path) -> list[Path]:
    return sorted(parent / name for parent, files in folders_below(folder) for name in files)


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir() and not is_clutter(path.name))
