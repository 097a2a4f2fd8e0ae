"""Object detection: boxes around objects, each with a class.

Outputs are the head's own, targets `Scenes` on the canvas. An answer are the
`Boxes` of an image in its own pixels; evidence are rows (M, 7) float64 of all boxes found: number
of the image, xmin, ymin, xmax, ymax, class index, score.
"""

from __future__ import annotations

from sft_mlflow.tasks.base import Task
from sft_mlflow.tasks.detection.answering import BoxAnswering
from sft_mlflow.tasks.detection.fcos import STRIDES, FcosOverPyramid
from sft_mlflow.tasks.detection.judging import BoxJudging
from sft_mlflow.tasks.detection.learning import BoxLearning
from sft_mlflow.tasks.detection.rest import RestOfDetector
from sft_mlflow.tasks.on_canvas import BuildingOnCanvas

DETECTION = Task(
    "detection",
    "object-detection",
    BuildingOnCanvas(
        task="detection",
        strides=STRIDES,
        over_maps=FcosOverPyramid,
        class_layers=FcosOverPyramid.class_layers,
        over_rest=RestOfDetector,
    ),
    BoxLearning(),
    BoxJudging(),
    BoxAnswering(),
)
