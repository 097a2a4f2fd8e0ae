"""Semantic segmentation: a class for each pixel.

Outputs are logits (B, classes, h, w) at the finest stride, targets class indices (B, H, W) uint8 on
the canvas, IGNORED where a pixel counts for nothing. An answer are the class indices (H, W) uint8
of an image in its own pixels; evidence are counts of pixels by true and predicted class
(N, classes, classes).
"""

from __future__ import annotations

from sft_mlflow.tasks.base import Task
from sft_mlflow.tasks.on_canvas import BuildingOnCanvas
from sft_mlflow.tasks.segmentation.answering import MaskAnswering
from sft_mlflow.tasks.segmentation.head import STRIDES, SemanticFpn
from sft_mlflow.tasks.segmentation.judging import MaskJudging
from sft_mlflow.tasks.segmentation.learning import MaskLearning
from sft_mlflow.tasks.segmentation.rest import RestOfSegmenter

SEGMENTATION = Task(
    "segmentation",
    "semantic-segmentation",
    BuildingOnCanvas(
        task="segmentation",
        strides=STRIDES,
        over_maps=SemanticFpn,
        class_layers=SemanticFpn.class_layers,
        over_rest=lambda model, _: RestOfSegmenter(model),
    ),
    MaskLearning(),
    MaskJudging(),
    MaskAnswering(),
)
