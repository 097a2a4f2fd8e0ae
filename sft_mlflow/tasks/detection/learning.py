"""How a network comes to find objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision import tv_tensors

from sft_mlflow.data.canvas import Canvas, boxes_on_canvas, place
from sft_mlflow.data.manifest import Manifest, Sample
from sft_mlflow.tasks import on_canvas
from sft_mlflow.tasks.base import Frame, LossSettings, Moved, Outputs
from sft_mlflow.tasks.detection.box_head import BoxHead, Objects
from sft_mlflow.tasks.detection.boxes import true_boxes

# Of an object that was moved over the edge so much must be left to be looked for, and a side of so
# many pixels.
_LEAST_VISIBLE = 0.3
_LEAST_PIXELS = 2


@dataclass(frozen=True)
class Scenes:
    """What is in the images of a batch, on a canvas of that size."""

    objects: tuple[Objects, ...]
    canvas: Canvas


class BoxLearning:
    """The loss is the head's own."""

    is_linear = False
    takes_settings = False
    label_smoothing = 0.0

    def class_weights(self, manifest: Manifest) -> None:
        """None: detectors choose among places by themselves, how hard they are or how many."""
        del manifest

    def are_imbalanced(self, counts: Mapping[str, int]) -> bool:
        """Never, for that reason."""
        del counts
        return False

    def targets(self, samples: Sequence[Sample], frame: Frame, moved: Moved) -> Scenes:
        """The objects of each image on the canvas, without those that moved out of it."""
        canvas = on_canvas.canvas_of(frame.pixels)

        def objects(sample: Sample) -> Objects:
            truth = true_boxes(sample, frame.classes)
            at = place(canvas, sample.width, sample.height)
            laid = tv_tensors.BoundingBoxes(
                torch.from_numpy(boxes_on_canvas(truth.boxes, at)).float(),
                format="XYXY",
                canvas_size=(canvas.height, canvas.width),
                # They are cut off below, where how much is left is known.
                clamping_mode=None,
            )
            boxes = moved(laid, sample.digest).as_subclass(Tensor)
            inside, kept = _inside(boxes, canvas)
            return Objects(inside[kept], torch.from_numpy(truth.labels)[kept])

        return Scenes(tuple(map(objects, samples)), canvas)

    def loss(
        self, head: nn.Module, outputs: Outputs, targets: Scenes, settings: LossSettings
    ) -> Tensor:
        """Of classes and of boxes together."""
        del settings
        assert isinstance(head, BoxHead)
        canvas = targets.canvas
        return head.loss(outputs, targets.objects, (canvas.height, canvas.width))


def _inside(boxes: Tensor, canvas: Canvas) -> tuple[Tensor, Tensor]:
    """The boxes (N, 4) cut off at the edges, and which (N,) are still to be looked for."""
    edges = boxes.new_tensor([canvas.width, canvas.height] * 2)
    cut = boxes.clamp(min=torch.zeros_like(edges), max=edges)
    before, after = (one[:, 2:] - one[:, :2] for one in (boxes, cut))
    visible = after.prod(1) >= _LEAST_VISIBLE * before.prod(1)
    return cut, visible & (after >= _LEAST_PIXELS).all(1)
