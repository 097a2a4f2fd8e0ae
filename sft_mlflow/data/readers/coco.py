"""COCO: a JSON file of images, categories and annotations with boxes, polygons or run lengths."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as run_lengths
from numpy.typing import NDArray
from PIL import Image

from sft_mlflow.data.findings import Finding, fault
from sft_mlflow.data.manifest import Split
from sft_mlflow.data.masks import MOST_CLASSES
from sft_mlflow.data.readers.listing import SPLIT_WORDS, Entry, Listing
from sft_mlflow.data.readers.materialised import materialise
from sft_mlflow.data.truth import Box, Mask, MaskValues, TaskName, Truth
from sft_mlflow.errors import DataError

# What a pixel shows that no annotation covers.
BACKGROUND = "background"
_EXPORTED = "_annotations.coco.json"


@dataclass(frozen=True)
class _File:
    """One JSON file as read. root: folder that its file names start at."""

    path: Path
    split: Split | None
    root: Path
    digest: str
    images: Mapping[int, Mapping[str, Any]]
    names: Mapping[int, str]
    annotations: Sequence[Mapping[str, Any]]


def tasks(uri: str) -> tuple[TaskName, ...]:
    """Detection, or segmentation of its polygons, for a JSON file or a folder that holds some."""
    return ("detection", "segmentation") if _files(Path(uri).expanduser()) else ()


def read(uri: str, *, cache: Path, task: TaskName, ignored: frozenset[str]) -> Listing:
    """The images of one JSON file, or of a folder with one for each side, in their order.

    A folder is laid out as COCO's own (`annotations/instances_train2017.json`, `train2017/`) or as
    exports are (`train/_annotations.coco.json`). For segmentation polygons and run lengths are
    drawn into masks below the cache, larger ones first; other pixels are `background`. A crowd is
    no object, and for detection it is passed over. ignored is not used.
    Raises DataError for a file that is no COCO JSON, or whose images are not found.
    """
    del ignored
    root = Path(uri).expanduser().resolve()
    entries: list[Entry] = []
    findings: list[Finding] = []
    files = [_read(path, split) for path, split in _files(root)]
    classes = tuple(dict.fromkeys(name for file in files for name in file.names.values()))
    values = None
    if task == "segmentation":
        classes = tuple(dict.fromkeys((BACKGROUND, *classes)))
        if len(classes) > MOST_CLASSES:
            raise DataError(f"{root}: {len(classes)} classes are more than a mask can hold.")
        values = MaskValues({str(number): name for number, name in enumerate(classes)})
    for file in files:
        annotated = {one["image_id"] for one in file.annotations}
        by_image = _by_image(file, findings, crowds=values is not None)
        truths: dict[int, Truth] = {}
        if values is None:
            for number in file.images:
                truths[number] = tuple(_boxes(file, by_image[number], findings))
        else:
            truths |= _masks(file, by_image, classes, cache, findings)
        entries += [
            Entry(
                file.root / str(image["file_name"]),
                truths[number],
                file.split,
                lost=number in annotated and not truths[number],
            )
            for number, image in file.images.items()
        ]
    name = root.name if root.is_dir() else root.stem
    return Listing(
        name,
        str(root),
        tuple(entries),
        classes=classes,
        mask_values=values,
        findings=tuple(findings),
    )


def _files(root: Path) -> list[tuple[Path, Split | None]]:
    """The JSON files with the sides that their names, or those of their folders, tell."""
    if root.is_file():
        return [(root, None)] if root.suffix.lower() == ".json" else []
    if not root.is_dir():
        return []
    exported = sorted(root.glob(f"*/{_EXPORTED}"))
    if exported:
        return [(path, SPLIT_WORDS.get(path.parent.name.lower())) for path in exported]
    found = sorted((root / "annotations").glob("*.json"))
    instances = [path for path in found if path.stem.startswith("instances")]
    sides = [(path, _side(path.stem)) for path in instances or found]
    return [(path, side) for path, side in sides if side is not None or len(sides) == 1]


def _side(stem: str) -> Split | None:
    words = stem.lower().replace("-", "_").split("_")
    plain = [word.rstrip("0123456789") for word in words]
    return next((SPLIT_WORDS[word] for word in plain if word in SPLIT_WORDS), None)


def _read(path: Path, split: Split | None) -> _File:
    content = path.read_bytes()
    try:
        values = json.loads(content)
        images = {int(image["id"]): image for image in values["images"]}
        names = {int(one["id"]): str(one["name"]) for one in values["categories"]}
        annotations = [
            {**one, **{key: _number(one.get(key)) for key in ("image_id", "category_id")}}
            for one in values.get("annotations") or []
        ]
        file_names = [str(image["file_name"]) for image in images.values()]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: no COCO JSON with images, categories and annotations ({error!r})."
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    return _File(path, split, _root(path, file_names), digest, images, names, annotations)


def _number(value: Any) -> int | None:
    """An id, which some programs write as text; None where it is none."""
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def _root(path: Path, file_names: Sequence[str]) -> Path:
    above = path.parent
    stem = path.stem.rpartition("_")[2]
    candidates = (
        above,
        above / "images",
        above.parent / "images",
        above.parent / stem,
        above.parent / "images" / stem,
        above.parent,
        above / path.stem,
        above / "data",
    )
    for folder in candidates:
        if any((folder / name).is_file() for name in file_names[:10]):
            return folder
    if not file_names:
        return above
    tried = ", ".join(str(folder) for folder in candidates)
    raise DataError(
        f"{path}: {file_names[0]} is in none of {tried}. Put the JSON beside its images, or into a "
        "folder beside theirs."
    )


def _by_image(
    file: _File, findings: list[Finding], *, crowds: bool
) -> dict[int, list[Mapping[str, Any]]]:
    """Usable annotations of each image. crowds: whether those of crowds are."""
    found: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    passed_over = 0
    for annotation in file.annotations:
        where = _where(file, annotation)
        if annotation.get("image_id") not in file.images:
            message = f"{where}: image {annotation.get('image_id')} is not listed; left out"
            findings.append(fault("annotation-without-image", message, file.path))
        elif annotation.get("category_id") not in file.names:
            message = f"{where}: category {annotation.get('category_id')} has no name; left out"
            findings.append(fault("unknown-class", message, file.path))
        elif annotation.get("iscrowd") and not crowds:
            passed_over += 1
        else:
            found[annotation["image_id"]].append(annotation)
    if passed_over:
        message = f"{file.path}: {passed_over} annotations are crowds, no objects; not used"
        findings.append(Finding("note", "crowd", message))
    return found


def _boxes(
    file: _File, annotations: Sequence[Mapping[str, Any]], findings: list[Finding]
) -> Iterator[Box]:
    for annotation in annotations:
        where = _where(file, annotation)
        try:
            x, y, width, height = (float(value) for value in annotation["bbox"])
        except (KeyError, TypeError, ValueError):
            message = f"{where}: no bbox of four numbers; left out"
            findings.append(fault("bad-annotation", message, file.path))
            continue
        yield Box(file.names[annotation["category_id"]], x, y, x + width, y + height, where)


def _masks(
    file: _File,
    annotations: Mapping[int, Sequence[Mapping[str, Any]]],
    classes: Sequence[str],
    cache: Path,
    findings: list[Finding],
) -> dict[int, Mask]:
    """The drawn mask of each image, whose pixels are positions in `classes`; 0 is background."""
    try:
        sizes = {n: (int(one["height"]), int(one["width"])) for n, one in file.images.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{file.path}: an image without height and width ({error!r}), which masks need."
        ) from error
    index = {number: classes.index(name) for number, name in file.names.items()}
    about = hashlib.sha256(json.dumps([file.digest, classes]).encode()).hexdigest()[:32]

    def draw(folder: Path) -> None:
        for number, (height, width) in sizes.items():
            pixels = np.zeros((height, width), np.uint8)
            given = annotations.get(number, ())
            for annotation in sorted(given, key=lambda a: -float(a.get("area") or 0)):
                if _can_be_drawn(annotation.get("segmentation"), sizes[number]):
                    covered = _covered(annotation["segmentation"], height, width)
                    pixels[covered] = index[annotation["category_id"]]
            Image.fromarray(pixels).save(folder / f"{number}.png")

    for number, of_image in annotations.items():
        for annotation in of_image:
            if not _can_be_drawn(annotation.get("segmentation"), sizes[number]):
                message = f"{_where(file, annotation)}: no polygon or run lengths of it; left out"
                findings.append(fault("bad-annotation", message, file.path))
    folder = materialise(cache.expanduser().resolve() / "masks" / about, draw)
    return {number: Mask(folder / f"{number}.png") for number in file.images}


def _can_be_drawn(segmentation: Any, size: tuple[int, int]) -> bool:
    """Whether it is polygons of three corners or more, or run lengths of that height and width."""
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        return isinstance(counts, list | str) and segmentation.get("size") == [*size]
    return (
        isinstance(segmentation, list)
        and len(segmentation) > 0
        and all(isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 for p in segmentation)
    )


def _covered(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    """The pixels of polygons or run lengths, as COCO's own code draws them."""
    encoded = segmentation
    if isinstance(segmentation, list):
        encoded = run_lengths.merge(run_lengths.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        encoded = run_lengths.frPyObjects(segmentation, height, width)
    covered: NDArray[np.bool_] = np.asarray(run_lengths.decode(encoded), bool)
    return covered


def _where(file: _File, annotation: Mapping[str, Any]) -> str:
    return f"{file.path}: annotation {annotation.get('id')}"
