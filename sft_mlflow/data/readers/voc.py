"""Pascal VOC: one XML file an image with boxes, palette masks, and lists of images by side."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

from sft_mlflow.data.findings import Finding, fault
from sft_mlflow.data.folders import IMAGE_SUFFIXES, images_in
from sft_mlflow.data.manifest import Split
from sft_mlflow.data.readers import mask_classes
from sft_mlflow.data.readers.listing import SPLIT_WORDS, Entry, Listing
from sft_mlflow.data.text import lines_of
from sft_mlflow.data.truth import Box, Mask, TaskName
from sft_mlflow.errors import DataError

_ANNOTATIONS, _IMAGES, _MASKS, _LISTS = (
    "Annotations",
    "JPEGImages",
    "SegmentationClass",
    "ImageSets",
)


def tasks(uri: str) -> tuple[TaskName, ...]:
    """Detection where there are XML files, segmentation where there are masks."""
    root = Path(uri).expanduser()
    found: list[TaskName] = []
    if any(_boxes_of(root)):
        found.append("detection")
    if (root / _MASKS).is_dir() and (root / _IMAGES).is_dir():
        found.append("segmentation")
    return tuple(found)


def read(uri: str, *, cache: Path, task: TaskName, ignored: frozenset[str]) -> Listing:
    """The images of the XML files, or of the masks, by name.

    The layout is that of the VOC challenges (`Annotations`, `JPEGImages`, `SegmentationClass`), or
    for boxes one XML beside each image, in one folder or in folders named after the sides. Lists in
    `ImageSets/Main` or `ImageSets/Segmentation` give the sides. Coordinates are taken as they are.
    ignored: values of masks that count for nothing. cache is not used.
    Raises DataError for lists that put one image on two sides.
    """
    del cache
    root = Path(uri).expanduser().resolve()
    if task == "segmentation":
        return _masks(root, ignored)
    sides = _sides(root / _LISTS / "Main")
    entries, findings = [], []
    unlisted = 0
    files = list(_boxes_of(root))
    for split, xml in files:
        if sides and xml.stem not in sides:
            unlisted += 1
            continue
        try:
            tree = ET.parse(xml).getroot()
        except (ET.ParseError, OSError) as error:
            findings.append(
                fault("bad-annotation", f"{xml}: cannot be read ({error}); left out", xml)
            )
            continue
        image = _image_of(root, xml, tree.findtext("filename") or "")
        if image is None:
            message = f"{xml}: its image is not there; left out"
            findings.append(fault("annotation-without-image", message, xml))
            continue
        boxes = []
        lost = False
        for number, found in enumerate(tree.iter("object"), 1):
            where = f"{xml}: object {number}"
            box = _box(found, where)
            if box is None:
                message = f"{where}: no name or no bndbox with four numbers; left out"
                findings.append(fault("bad-annotation", message, xml))
                lost = True
            else:
                boxes.append(box)
        entries.append(Entry(image, tuple(boxes), sides.get(xml.stem, split), lost=lost))
    annotated = {xml.stem for _, xml in files}
    for image in _pictures(root / _IMAGES):
        if image.stem not in annotated and (not sides or image.stem in sides):
            message = f"{image}: has no XML file; left out"
            findings.append(fault("image-without-annotation", message, image))
    return Listing(
        root.name,
        str(root),
        tuple(entries),
        findings=(*findings, *_unlisted(unlisted, root / _LISTS)),
    )


def _boxes_of(root: Path) -> Iterator[tuple[Split | None, Path]]:
    """The XML files of boxes, with the side that their folder names."""
    if (root / _ANNOTATIONS).is_dir():
        yield from ((None, path) for path in sorted((root / _ANNOTATIONS).glob("*.xml")))
    elif root.is_dir():
        yield from ((None, path) for path in _beside_images(root))
        for folder in sorted(path for path in root.iterdir() if path.is_dir()):
            side = SPLIT_WORDS.get(folder.name.lower())
            if side is not None:
                yield from ((side, path) for path in _beside_images(folder))


def _beside_images(folder: Path) -> Iterator[Path]:
    """XML files with the name of an image there; others are no one's annotations."""
    names = {path.stem for path in _pictures(folder)}
    yield from (path for path in sorted(folder.glob("*.xml")) if path.stem in names)


def _image_of(root: Path, xml: Path, filename: str) -> Path | None:
    folders = [root / _IMAGES, root / "images", xml.parent]
    names = [Path(filename.replace("\\", "/")).name] if filename else []
    for folder in folders:
        same_stem = [folder / f"{xml.stem}{suffix}" for suffix in sorted(IMAGE_SUFFIXES)]
        upper = [path.with_suffix(path.suffix.upper()) for path in same_stem]
        for path in (*same_stem, *upper, *(folder / name for name in names)):
            if path.is_file():
                return path
    return None


def _box(found: ET.Element, where: str) -> Box | None:
    name = (found.findtext("name") or "").strip()
    try:
        xmin, ymin, xmax, ymax = (
            float(found.findtext(f"bndbox/{side}") or "")
            for side in ("xmin", "ymin", "xmax", "ymax")
        )
    except ValueError:
        return None
    return Box(name, xmin, ymin, xmax, ymax, where) if name else None


def _masks(root: Path, ignored: frozenset[str]) -> Listing:
    sides = _sides(root / _LISTS / "Segmentation")
    entries, findings = [], []
    unlisted = 0
    pictures = {path.stem: path for path in _pictures(root / _IMAGES)}
    masks = sorted((root / _MASKS).glob("*.png"))
    for mask in masks:
        if sides and mask.stem not in sides:
            unlisted += 1
        elif mask.stem not in pictures:
            message = f"{mask}: its image is not there; left out"
            findings.append(fault("annotation-without-image", message, mask))
        else:
            entries.append(Entry(pictures[mask.stem], Mask(mask), sides.get(mask.stem)))
    values = mask_classes.values_of(root, masks, ignored, known=mask_classes.VOC)
    return Listing(
        root.name,
        str(root),
        tuple(entries),
        classes=mask_classes.names(values),
        mask_values=values,
        findings=(*findings, *_unlisted(unlisted, root / _LISTS)),
    )


def _sides(folder: Path) -> dict[str, Split]:
    """Side of each image by its stem; without `train`, what `trainval` has beside `val` trains."""
    found: dict[str, Split] = {}
    names = [name for name in ("train", "val", "test") if (folder / f"{name}.txt").is_file()]
    if "train" not in names and (folder / "trainval.txt").is_file():
        names.append("trainval")
    for name in names:
        side = SPLIT_WORDS.get(name, "train")
        for line in lines_of(folder / f"{name}.txt"):
            stem = line.split()[0] if line.split() else ""
            if name == "trainval" and found.get(stem) == "valid":
                continue
            if stem and found.setdefault(stem, side) != side:
                raise DataError(
                    f"{folder}: {stem} is listed for {found[stem]} and for {side}. Keep one."
                )
    return found


def _pictures(folder: Path) -> list[Path]:
    return images_in(folder) if folder.is_dir() else []


def _unlisted(number: int, lists: Path) -> Iterator[Finding]:
    if number:
        yield Finding("note", "unlisted", f"{number} images are in no list of {lists}; not used")
