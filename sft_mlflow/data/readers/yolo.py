"""YOLO: `data.yaml`, folders `images` and `labels`, and a text file of boxes for each image."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from sft_mlflow.data.findings import Finding, fault
from sft_mlflow.data.folders import images_below
from sft_mlflow.data.readers.listing import SPLIT_WORDS, Entry, Listing
from sft_mlflow.data.text import lines_of
from sft_mlflow.data.truth import Box, TaskName
from sft_mlflow.errors import DataError

_SUFFIXES = (".yaml", ".yml")


def tasks(uri: str) -> tuple[TaskName, ...]:
    """Detection for a `data.yaml` that names classes and images, or a folder that holds one."""
    return () if _config(Path(uri).expanduser()) is None else ("detection",)


def read(uri: str, *, cache: Path, task: TaskName, ignored: frozenset[str]) -> Listing:
    """The images that `train`, `val` and `test` of the YAML name: folders, or lists of files.

    The boxes of `…/images/….jpg` are in `…/labels/….txt`, one line each: class number, then centre,
    width and height as shares of the image's sides; a polygon becomes the box around it. An image
    without a text file shows nothing. The arguments beside the URI are not used.
    Raises DataError for a YAML that names no classes or no images.
    """
    del cache, task, ignored
    found = _config(Path(uri).expanduser().resolve())
    if found is None:
        raise DataError(f"{uri}: no YAML with `names` and `train`.")
    path, config = found
    names = _names(path, config["names"])
    root = path.parent / str(config.get("path") or "")
    root = root if root.is_dir() else path.parent
    entries: list[Entry] = []
    findings: list[Finding] = []
    for word in ("train", "val", "valid", "test"):
        for image in _images(path, root, config.get(word)):
            before = len(findings)
            boxes = tuple(_boxes(_labels_of(image), names, findings))
            lost = len(findings) > before
            entries.append(Entry(image, boxes, SPLIT_WORDS[word], lost=lost))
    name = path.parent.name if path.stem in ("data", "dataset") else path.stem
    return Listing(
        name,
        str(path),
        tuple(entries),
        classes=tuple(dict.fromkeys(names.values())),
        relative=True,
        findings=(*findings, *_orphans(entries)),
    )


def _config(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """The YAML and what it says."""
    candidates = [path] if path.suffix in _SUFFIXES else []
    if path.is_dir():
        candidates = sorted(p for suffix in _SUFFIXES for p in path.glob(f"*{suffix}"))
    for candidate in candidates:
        try:
            config = yaml.safe_load(candidate.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError, UnicodeDecodeError):
            continue
        if isinstance(config, dict) and "names" in config and "train" in config:
            return candidate, config
    return None


def _names(path: Path, given: Any) -> dict[int, str]:
    if isinstance(given, Mapping) and all(str(number).isdecimal() for number in given):
        return {int(number): str(name) for number, name in given.items()}
    if isinstance(given, list):
        return {number: str(name) for number, name in enumerate(given)}
    raise DataError(f"{path}: `names` is neither a list nor a mapping from numbers to names.")


def _images(path: Path, root: Path, given: Any) -> Iterator[Path]:
    """The images of one side: of a folder, a list of files, or several of these."""
    for text in given if isinstance(given, list) else [given] if given else []:
        if not isinstance(text, str):
            raise DataError(f"{path}: {text!r} is no path of images.")
        # Exports write `../train/images` whatever the YAML's own folder is called.
        tried = [root / text, root / text.removeprefix("../"), path.parent / text]
        found = next((place for place in tried if place.exists()), None)
        if found is None:
            near = difflib.get_close_matches(text, [p.name for p in root.iterdir()], n=1)
            hint = f"; there is {near[0]!r}" if near else ""
            raise DataError(f"{path}: {text!r} is not there{hint}.")
        if found.is_file():
            yield from (found.parent / line.strip() for line in lines_of(found) if line.strip())
        else:
            yield from sorted(images_below(found))


def _labels_of(image: Path) -> Path:
    parts = list(image.parts)
    for at in range(len(parts) - 2, -1, -1):
        if parts[at] == "images":
            parts[at] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _boxes(path: Path, names: Mapping[int, str], findings: list[Finding]) -> Iterator[Box]:
    if not path.is_file():
        return
    for number, line in enumerate(lines_of(path), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            first, *rest = line.split()
            label, cells = int(first), [float(cell) for cell in rest]
        except ValueError:
            findings.append(
                fault(
                    "bad-annotation",
                    f"{where}: {line!r} is no class number and shares; left out",
                    path,
                )
            )
            continue
        if label not in names:
            message = f"{where}: class {label} has no name; left out"
            findings.append(fault("unknown-class", message, path))
        elif len(cells) == 4:
            x, y, width, height = cells
            left, top = x - width / 2, y - height / 2
            yield Box(names[label], left, top, left + width, top + height, where)
        elif len(cells) >= 6 and len(cells) % 2 == 0:
            xs, ys = cells[::2], cells[1::2]
            yield Box(names[label], min(xs), min(ys), max(xs), max(ys), where)
        else:
            message = f"{where}: neither a class number and four shares nor a polygon; left out"
            findings.append(fault("bad-annotation", message, path))


def _orphans(entries: list[Entry]) -> Iterator[Finding]:
    used = {_labels_of(entry.path) for entry in entries}
    for folder in sorted({path.parent for path in used}):
        for path in sorted(folder.glob("*.txt")) if folder.is_dir() else ():
            # Programs put the names of the classes beside the boxes.
            if path not in used and path.name not in ("classes.txt", "train.txt", "val.txt"):
                message = f"{path}: its image is not there; left out"
                yield fault("annotation-without-image", message, path)
