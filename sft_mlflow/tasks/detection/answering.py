"""How boxes reach people and programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import nn

from sft_mlflow.data.canvas import boxes_in_picture, place
from sft_mlflow.tasks import exports, on_canvas
from sft_mlflow.tasks.base import Frame, Outputs
from sft_mlflow.tasks.detection.box_head import BoxHead
from sft_mlflow.tasks.detection.boxes import Boxes
from sft_mlflow.tasks.exports import Annotated, Export, path_of

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_BOX = [("label", pa.string()), ("score", pa.float64()), *((c, pa.float64()) for c in _CORNERS)]


class BoxAnswering:
    """An answer are the boxes found in an image, in its own pixels, by falling score."""

    adjustable = ("least_score",)

    @property
    def exports(self) -> Mapping[str, Export]:
        """COCO's JSON."""
        return {"coco": partial(exports.coco, _annotated)}

    def answers(
        self,
        head: nn.Module,
        outputs: Outputs,
        sizes: Sequence[tuple[int, int]],
        frame: Frame,
    ) -> list[Boxes]:
        """After non-maximum suppression, cut off at the edges of the image."""
        assert isinstance(head, BoxHead)
        canvas = on_canvas.canvas_of(frame.pixels)
        found = []
        detected = head.detect(outputs, (canvas.height, canvas.width))
        for one, (width, height) in zip(detected, sizes, strict=False):
            at = place(canvas, width, height)
            boxes = boxes_in_picture(one.boxes.cpu().double().numpy(), at)
            # What was found on the padding alone has nothing left.
            left = (boxes[:, 2:] > boxes[:, :2]).all(1)
            found.append(
                Boxes(
                    boxes[left],
                    one.labels.cpu().numpy()[left],
                    one.scores.cpu().double().numpy()[left],
                )
            )
        return found

    def mirrored(self, answer: Boxes, width: int) -> Boxes:
        """Left edges become right ones."""
        xmin, ymin, xmax, ymax = answer.boxes.T
        boxes = np.stack([width - xmax, ymin, width - xmin, ymax], axis=1)
        return replace(answer, boxes=boxes)

    def columns(self, classes: Sequence[str]) -> list[tuple[str, pa.DataType]]:
        """Of the image its size and how many boxes it has, of each its class, score and corners.

        All in pixels of the upright image.
        """
        del classes
        return [*((name, pa.int64()) for name in ("width", "height", "boxes")), *_BOX]

    def rows(
        self,
        answers: Sequence[Boxes | None],
        labels: Sequence[str | None],
        sizes: Sequence[tuple[int, int] | None],
        frame: Frame,
    ) -> tuple[NDArray[np.intp], list[pa.Array]]:
        """One row a box; one without a box for an image that has none, or cannot be read."""
        del labels
        of_images: list[int] = []
        rows: list[dict[str, object]] = []
        for number, (answer, size) in enumerate(zip(answers, sizes, strict=True)):
            boxes = [] if answer is None else _rows(answer, frame)
            width, height = (None, None) if size is None else size
            count = None if answer is None else len(boxes)
            for box in boxes or [{}]:
                of_images.append(number)
                rows.append({"width": width, "height": height, "boxes": count, **box})
        columns = self.columns(frame.classes)
        return np.array(of_images, np.intp), [
            pa.array([row.get(name) for row in rows], kind) for name, kind in columns
        ]

    def served_columns(self) -> list[tuple[str, pa.DataType]]:
        """`boxes`: a list of them."""
        return [("boxes", pa.list_(pa.struct(_BOX)))]

    def served(self, answer: Boxes, frame: Frame) -> dict[str, object]:
        """One row."""
        return {"boxes": _rows(answer, frame)}


def _rows(answer: Boxes, frame: Frame) -> list[dict[str, object]]:
    found = answer.above(frame.calibration.least_score)
    return [
        {
            "label": frame.classes[label],
            "score": float(score),
            **dict(zip(_CORNERS, map(float, box), strict=True)),
        }
        for box, label, score in zip(found.boxes, found.labels, found.scores, strict=True)
    ]


def _annotated(rows: Iterable[exports.Row]) -> Iterator[Annotated]:
    for found in exports.by_image(rows, of=lambda row: max(1, row["boxes"] or 0)):
        first = found[0]
        if first["error"] is None:
            annotations = (_annotation(row) for row in found if row["label"] is not None)
            yield Annotated(path_of(first), first["width"], first["height"], annotations)


def _annotation(row: exports.Row) -> dict[str, Any]:
    width, height = row["xmax"] - row["xmin"], row["ymax"] - row["ymin"]
    return {
        "label": row["label"],
        "score": row["score"],
        "bbox": [row["xmin"], row["ymin"], width, height],
        "area": width * height,
    }
