"""Data sets that are written once as image files, so that everything downstream is files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def materialise(target: Path, write: Callable[[Path], None]) -> Path:
    """The target folder, filled by `write` if it is not there yet.

    It appears whole or not at all: `write` fills a folder beside it, which is then renamed.
    Several processes may ask at once; one writes.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / f".{target.name}.lock"):
        if not target.is_dir():
            beside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
            try:
                # mkdtemp's folder is private; what is kept has the user's usual permissions.
                content = beside / target.name
                content.mkdir()
                write(content)
                content.rename(target)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
    return target
