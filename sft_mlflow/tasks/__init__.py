"""What a network is asked: one folder a task, and the list of them.

A fourth task is a new folder here and one line in `TASKS`: there is no registration by import.
"""

from __future__ import annotations

from collections.abc import Mapping

from sft_mlflow.tasks.base import Task
from sft_mlflow.tasks.classification import CLASSIFICATION
from sft_mlflow.tasks.detection import DETECTION
from sft_mlflow.tasks.segmentation import SEGMENTATION

TASKS: Mapping[str, Task] = {task.name: task for task in (CLASSIFICATION, DETECTION, SEGMENTATION)}
