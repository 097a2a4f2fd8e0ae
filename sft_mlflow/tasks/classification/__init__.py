"""Image classification: one class for each image.

Outputs are logits (B, classes), targets class indices (B,) int64; an answer are the logits of an
image (classes,), and evidence those of several (N, classes).
"""

from __future__ import annotations

from sft_mlflow.tasks.base import Task
from sft_mlflow.tasks.classification.answering import ClassAnswering
from sft_mlflow.tasks.classification.building import ClassBuilding
from sft_mlflow.tasks.classification.judging import ClassJudging
from sft_mlflow.tasks.classification.learning import ClassLearning

CLASSIFICATION = Task(
    "classification",
    "image-classification",
    ClassBuilding(),
    ClassLearning(),
    ClassJudging(),
    ClassAnswering(),
)
