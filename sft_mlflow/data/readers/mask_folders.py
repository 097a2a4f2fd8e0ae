"""Folders of images beside folders of masks, matched by name, with or without sides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sft_mlflow.data.findings import Finding, fault
from sft_mlflow.data.folders import images_in
from sft_mlflow.data.manifest import Split
from sft_mlflow.data.readers import mask_classes
from sft_mlflow.data.readers.listing import SPLIT_WORDS, Entry, Listing
from sft_mlflow.data.truth import Mask, TaskName

_IMAGES = ("images", "image", "imgs", "img")
_MASKS = ("masks", "mask", "labels", "label", "annotations", "annots", "gt")
# What the name of a mask, or of a folder of masks, has behind that of its image or images.
_BEHIND = (
    "annot",
    "_annot",
    "_mask",
    "_masks",
    "masks",
    "_labels",
    "_label",
    "labels",
    "_L",
    "_gt",
)


def tasks(uri: str) -> tuple[TaskName, ...]:
    """Segmentation for a folder with pairs of folders, of images and of masks."""
    root = Path(uri).expanduser()
    return ("segmentation",) if root.is_dir() and any(_pairs(root)) else ()


def read(uri: str, *, cache: Path, task: TaskName, ignored: frozenset[str]) -> Listing:
    """The images that have a mask, by name.

    The pairs are `images` and `masks` (or `labels`, `annotations`, …), both with or without folders
    for the sides in them; the same two in folders for the sides; or `train` and `trainannot`. A
    mask has the name of its image, or that and `_mask`, `_label`, `_L`, `_gt`. `classes.txt`,
    `class_dict.csv` or CVAT's `labelmap.txt` in the root say what the values of pixels stand for.
    ignored: values that count for nothing besides 255. The other arguments are not used.
    Raises DataError as `mask_classes.values_of` does.
    """
    del cache, task
    root = Path(uri).expanduser().resolve()
    entries: list[Entry] = []
    findings: list[Finding] = []
    for split, pictures, masks in _pairs(root):
        of_stem = {path.stem: path for path in images_in(masks)}
        for image in images_in(pictures):
            stems = (image.stem, *(f"{image.stem}{behind}" for behind in _BEHIND))
            mask = next((of_stem.pop(stem) for stem in stems if stem in of_stem), None)
            if mask is None:
                message = f"{image}: has no mask; left out"
                findings.append(fault("image-without-annotation", message, image))
            else:
                entries.append(Entry(image, Mask(mask), split))
        for path in of_stem.values():
            message = f"{path}: its image is not there; left out"
            findings.append(fault("annotation-without-image", message, path))
    masks_used = [entry.truth.path for entry in entries if isinstance(entry.truth, Mask)]
    values = mask_classes.values_of(root, masks_used, ignored)
    return Listing(
        root.name,
        str(root),
        tuple(entries),
        classes=mask_classes.names(values),
        mask_values=values,
        findings=tuple(findings),
    )


def _pairs(root: Path) -> Iterator[tuple[Split | None, Path, Path]]:
    """The folders that belong together, with the side that they are."""
    images, masks = _one_of(root, _IMAGES), _one_of(root, _MASKS)
    if images is not None and masks is not None:
        both = ((folder, masks / folder.name) for folder in _folders(images))
        sides = [folder for folder, of_masks in both if of_masks.is_dir() and images_in(of_masks)]
        for folder in sides:
            yield SPLIT_WORDS.get(folder.name.lower()), folder, masks / folder.name
        # YOLO has a folder `labels` too, of text files.
        if not sides and images_in(masks):
            yield None, images, masks
        return
    for folder in _folders(root):
        side = SPLIT_WORDS.get(folder.name.lower())
        if side is None:
            continue
        images, masks = _one_of(folder, _IMAGES), _one_of(folder, _MASKS)
        beside = [root / f"{folder.name}{behind}" for behind in _BEHIND]
        if images is not None and masks is not None and images_in(masks):
            yield side, images, masks
        elif found := next((path for path in beside if path.is_dir()), None):
            yield side, folder, found


def _one_of(folder: Path, names: tuple[str, ...]) -> Path | None:
    below = {path.name.lower(): path for path in _folders(folder)}
    return next((below[name] for name in names if name in below), None)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())
