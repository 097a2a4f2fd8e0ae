"""Boxes and masks as other programs write them: globox for boxes, pycocotools and Pillow for masks.

Everything is written from the same two pictures and objects, so that each format must say the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from globox import Annotation, AnnotationSet, BoundingBox
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as run_lengths

from sft_mlflow.data.truth import Box

SIZE = (60, 40)
CLASSES = ("cell", "nucleus")
BOXES: dict[str, list[Box]] = {
    "a": [Box("cell", 4, 6, 20, 30), Box("nucleus", 8, 10, 14, 16)],
    "b": [Box("cell", 30, 2, 58, 38)],
}


def pictures(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for seed, name in enumerate(BOXES):
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize(SIZE).save(folder / f"{name}.png")
    return folder


def indices(name: str) -> NDArray[np.uint8]:
    """0 for background, then the classes from 1, the smaller objects on top."""
    width, height = SIZE
    pixels = np.zeros((height, width), np.uint8)
    for box in BOXES[name]:
        inside = np.s_[int(box.ymin) : int(box.ymax), int(box.xmin) : int(box.xmax)]
        pixels[inside] = 1 + CLASSES.index(box.label)
    return pixels


def boxes_of_globox() -> AnnotationSet:
    return AnnotationSet(
        Annotation(
            f"{name}.png",
            SIZE,
            [
                BoundingBox(label=b.label, xmin=b.xmin, ymin=b.ymin, xmax=b.xmax, ymax=b.ymax)
                for b in boxes
            ],
        )
        for name, boxes in BOXES.items()
    )


def coco(root: Path) -> str:
    pictures(root / "images")
    boxes_of_globox().save_coco(root / "boxes.json", auto_ids=True)
    return str(root / "boxes.json")


def voc(root: Path) -> str:
    pictures(root / "JPEGImages")
    boxes_of_globox().save_pascal_voc(root / "Annotations")
    return str(root)


def yolo(root: Path) -> str:
    pictures(root / "images" / "train")
    (root / "labels").mkdir()
    ids = {name: number for number, name in enumerate(CLASSES)}
    boxes_of_globox().save_yolo_v5(root / "labels" / "train", label_to_id=ids)
    config = {"train": "images/train", "names": dict(enumerate(CLASSES))}
    (root / "data.yaml").write_text(yaml.safe_dump(config))
    return str(root)


def box_table(root: Path) -> str:
    pictures(root / "images")
    rows = [
        f"images/{name}.png,{b.label},{b.xmin},{b.ymin},{b.xmax},{b.ymax}"
        for name, boxes in BOXES.items()
        for b in boxes
    ]
    header = "path,label,xmin,ymin,xmax,ymax"
    (root / "boxes.csv").write_text("\n".join((header, *rows)) + "\n")
    return str(root / "boxes.csv")


def masks(folder: Path, behind: str = "", *, palette: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in BOXES:
        image = Image.fromarray(indices(name))
        if palette:
            image.putpalette([*range(256)] * 3)
        image.save(folder / f"{name}{behind}.png")


def names(root: Path) -> None:
    (root / "classes.txt").write_text("\n".join(("background", *CLASSES)))


def mask_folders(root: Path) -> str:
    pictures(root / "images")
    masks(root / "masks", "_mask")
    names(root)
    return str(root)


def palette_masks(root: Path) -> str:
    pictures(root / "images" / "train")
    masks(root / "labels" / "train", palette=True)
    names(root)
    return str(root)


def colour_masks(root: Path) -> str:
    pictures(root / "train")
    colours = np.array([(0, 0, 0), (255, 0, 0), (0, 128, 255)], np.uint8)
    (root / "trainannot").mkdir()
    for name in BOXES:
        Image.fromarray(colours[indices(name)]).save(root / "trainannot" / f"{name}.png")
    both = zip(("background", *CLASSES), colours.tolist(), strict=True)
    rows = (f"{name},{red},{green},{blue}" for name, (red, green, blue) in both)
    (root / "class_dict.csv").write_text("\n".join(("name,r,g,b", *rows)))
    return str(root)


def voc_masks(root: Path) -> str:
    pictures(root / "JPEGImages")
    masks(root / "SegmentationClass", palette=True)
    names(root)
    return str(root)


def coco_masks(root: Path) -> str:
    """Polygons for the first picture, compressed run lengths for the second."""
    pictures(root / "images")
    annotations = []
    for number, boxes in enumerate(BOXES.values()):
        for box in boxes:
            own = np.zeros((SIZE[1], SIZE[0]), np.uint8, order="F")
            own[int(box.ymin) : int(box.ymax), int(box.xmin) : int(box.xmax)] = 1
            encoded = run_lengths.encode(own)
            encoded["counts"] = encoded["counts"].decode()
            edges = (box.xmin, box.ymin, box.xmax, box.ymin)
            polygon = [*edges, box.xmax, box.ymax, box.xmin, box.ymax]
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "category_id": 1 + CLASSES.index(box.label),
                    "bbox": [box.xmin, box.ymin, box.width, box.height],
                    "area": box.width * box.height,
                    "segmentation": encoded if number else [polygon],
                }
            )
    content = {
        "images": [
            {"id": n, "file_name": f"{name}.png", "width": SIZE[0], "height": SIZE[1]}
            for n, name in enumerate(BOXES)
        ],
        "categories": [{"id": n, "name": name} for n, name in enumerate(CLASSES, 1)],
        "annotations": annotations,
    }
    (root / "masks.json").write_text(json.dumps(content))
    return str(root / "masks.json")


DETECTION: dict[str, Callable[[Path], str]] = {
    "coco": coco,
    "voc": voc,
    "yolo": yolo,
    "box table": box_table,
}
SEGMENTATION: dict[str, Callable[[Path], str]] = {
    "mask folders": mask_folders,
    "palette masks": palette_masks,
    "colour masks": colour_masks,
    "voc masks": voc_masks,
    "coco masks": coco_masks,
}
