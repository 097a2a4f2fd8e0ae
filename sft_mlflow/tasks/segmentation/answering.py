"""How masks reach people and programs: as COCO's run lengths, one for each class that is there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from faster_coco_eval.core import mask as run_lengths
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from sft_mlflow.data.canvas import place
from sft_mlflow.data.masks import IGNORED
from sft_mlflow.errors import DataError
from sft_mlflow.tasks import exports, on_canvas
from sft_mlflow.tasks.base import Frame
from sft_mlflow.tasks.exports import Annotated, Export, path_of

Indices = NDArray[np.uint8]

_SEGMENT = pa.struct(
    [
        ("label", pa.string()),
        ("pixels", pa.int64()),
        ("size", pa.list_(pa.int64())),
        ("counts", pa.string()),
    ]
)


class MaskAnswering:
    """An answer are the class indices (H, W) uint8 of an image, in its own pixels."""

    adjustable = ()

    @property
    def exports(self) -> Mapping[str, Export]:
        """COCO's JSON with run lengths, and PNG files."""
        return {
            "coco": partial(exports.coco, _annotated),
            "masks": partial(
                exports.masks, lambda row, classes: indices_of(row["segments"], classes)
            ),
        }

    def answers(
        self, head: nn.Module, outputs: Tensor, sizes: Sequence[tuple[int, int]], frame: Frame
    ) -> list[Indices]:
        """The likeliest class of each pixel, its logits scaled to the image."""
        del head
        canvas = on_canvas.canvas_of(frame.pixels)
        found = []
        for logits, (width, height) in zip(outputs.float(), sizes, strict=False):
            at = place(canvas, width, height)
            whole = F.interpolate(
                logits[None], (canvas.height, canvas.width), mode="bilinear", align_corners=False
            )
            # Class by class: of a large picture all of them together would fill the memory.
            best = indices = None
            for number in range(len(frame.classes)):
                of_class = F.interpolate(
                    whole[:, number : number + 1, : at.height, : at.width],
                    (height, width),
                    mode="bilinear",
                    align_corners=False,
                )[0, 0]
                if best is None or indices is None:
                    best, indices = of_class, of_class.new_zeros(of_class.shape).byte()
                    continue
                better = of_class > best
                indices[better] = number
                best = best.maximum(of_class)
            assert indices is not None
            found.append(indices.cpu().numpy())
        return found

    def mirrored(self, answer: Indices, width: int) -> Indices:
        """The mask turned around."""
        del width
        return answer[:, ::-1]

    def columns(self, classes: Sequence[str]) -> list[tuple[str, pa.DataType]]:
        """`segments`: of each class that is there its pixels, and where as a COCO run length."""
        del classes
        return [("segments", pa.list_(_SEGMENT))]

    def rows(
        self,
        answers: Sequence[Indices | None],
        labels: Sequence[str | None],
        sizes: Sequence[tuple[int, int] | None],
        frame: Frame,
    ) -> tuple[NDArray[np.intp], list[pa.Array]]:
        """One row an image."""
        del labels, sizes
        found = [None if answer is None else segments(answer, frame.classes) for answer in answers]
        return np.arange(len(answers)), [pa.array(found, pa.list_(_SEGMENT))]

    def served_columns(self) -> list[tuple[str, pa.DataType]]:
        """The same."""
        return [("segments", pa.list_(_SEGMENT))]

    def served(self, answer: Indices, frame: Frame) -> dict[str, object]:
        """One row."""
        return {"segments": segments(answer, frame.classes)}


def indices_of(segments: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> Indices:
    """The mask that these segments came of, IGNORED where none of them is.

    Raises DataError where there is none, or one is of a class that is not among these.
    """
    if not segments:
        raise DataError("a mask without a segment has no size. Give at least one.")
    height, width = map(int, segments[0]["size"])
    found = np.full((height, width), IGNORED, np.uint8)
    for segment in segments:
        counts = {"size": [height, width], "counts": str(segment["counts"]).encode()}
        found[run_lengths.decode(counts).astype(bool)] = classes.index(str(segment["label"]))
    return found


def _annotated(rows: Iterable[exports.Row]) -> Iterator[Annotated]:
    for row in rows:
        if row["error"] is None:
            found = row["segments"]
            height, width = map(int, found[0]["size"])
            yield Annotated(path_of(row), width, height, map(_annotation, found))


def _annotation(segment: Mapping[str, Any]) -> dict[str, Any]:
    size, counts = list(map(int, segment["size"])), str(segment["counts"])
    left, top, width, height = run_lengths.toBbox({"size": size, "counts": counts.encode()})
    return {
        "label": segment["label"],
        "segmentation": {"size": size, "counts": counts},
        "area": int(segment["pixels"]),
        "bbox": [float(left), float(top), float(width), float(height)],
    }


def segments(
    indices: Indices, classes: Sequence[str], but: int | None = None
) -> list[dict[str, object]]:
    """Each class that some pixel has, with the number of its pixels and COCO's run lengths.

    size: height and width; counts: compressed, as pycocotools reads them; but: an index that is no
    class.
    """
    found: list[dict[str, object]] = []
    for number in np.unique(indices).tolist():
        if number == but:
            continue
        of_class = indices == number
        encoded = run_lengths.encode(np.asfortranarray(of_class, np.uint8))
        found.append(
            {
                "label": classes[number],
                "pixels": int(of_class.sum()),
                "size": list(encoded["size"]),
                "counts": encoded["counts"].decode(),
            }
        )
    return found
