"""Folders of users: in order, round loops, and past what nobody means as an image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif")
)
# Left by file managers and archivers in any folder; never what someone meant as an image.
_CLUTTER = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "icon\r"))


def is_clutter(name: str) -> bool:
    """Whether a file or folder of that name is passed over: hidden ones are, too."""
    return name.startswith(".") or name.lower() in _CLUTTER


def is_image(name: str) -> bool:
    """Whether a file of that name is one of an image, by its suffix."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def images_in(folder: Path) -> list[Path]:
    """The files directly in the folder that are named as images are, in order, without clutter."""
    named = (path for path in folder.iterdir() if is_image(path.name) and not is_clutter(path.name))
    return sorted(path for path in named if path.is_file())


def folders_below(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder from the root down with the names of its files, in order, without clutter."""
    # A link that points upwards would otherwise be walked for ever.
    walked = set()
    for parent, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(parent)
        if real in walked:
            folders.clear()
            continue
        walked.add(real)
        folders[:] = sorted(name for name in folders if not is_clutter(name))
        yield Path(parent), sorted(name for name in files if not is_clutter(name))


def images_below(root: Path) -> Iterator[Path]:
    """The files of `folders_below` that are named as images are, folder by folder."""
    for parent, files in folders_below(root):
        yield from (parent / name for name in files if is_image(name))
