"""A fine-tuned model that answers: from pixels to what it says of each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sft_mlflow.errors import OptionsError
from sft_mlflow.sources import architectures, model_folder, network
from sft_mlflow.sources.folding import folded
from sft_mlflow.sources.model_folder import ModelConfig
from sft_mlflow.tasks import TASKS
from sft_mlflow.tasks.base import Answer, Frame


class Predictor:
    """Answers of a model folder's network, in float32 arithmetic.

    The same image gives the same answer whichever images come with it.
    """

    def __init__(self, config: ModelConfig, staged: network.StagedNetwork, device: str) -> None:
        self.config = config
        self.task = TASKS[config.task]
        self.frame = Frame.of_model(config)
        self._device = torch.device(device)
        self._head = staged.head
        staged.model.eval().to(self._device).to(memory_format=torch.channels_last)
        self._network = folded(staged.suffix(staged.full_depth))

    @classmethod
    def load(
        cls, folder: Path, device: str = "cpu", *, least_score: float | None = None
    ) -> Predictor:
        """The predictor of a model folder; its weights are verified against their SHA-256.

        least_score: of boxes that are reported, None for the model's own. Raises OptionsError where
        it is given to a model that has none.
        """
        config = model_folder.read_config(folder)
        if least_score is not None:
            if "least_score" not in TASKS[config.task].answering.adjustable:
                raise OptionsError(f"--least-score {least_score:g}: {config.task} has no boxes.")
            calibration = replace(config.calibration, least_score=least_score)
            config = replace(config, calibration=calibration)
        building = TASKS[config.task].building
        staged = building.bare_network(config.architecture, len(config.classes))
        architectures.load(staged.model, model_folder.read_weights(folder, config), str(folder))
        return cls(config, staged, device)

    def answers(self, pixels: NDArray[np.uint8], sizes: Sequence[tuple[int, int]]) -> list[Answer]:
        """What it says of each image, in the form of its task.

        pixels: (N, height, width, 3) uint8, RGB, as the frame's pixels are; N may be 0; sizes:
        width and height of the upright images that they were made of.
        """
        # Every batch has this many rows, the last one padded: for another number of rows a kernel
        # may sum in another order, and an image would be answered otherwise in other company.
        batch = self.frame.pixels.together
        found: list[Answer] = []
        for start in range(0, len(pixels), batch):
            some = slice(start, start + batch)
            found += self._forward(pixels[some], sizes[some], batch)
        return found

    @torch.inference_mode()
    def _forward(
        self, pixels: NDArray[np.uint8], sizes: Sequence[tuple[int, int]], batch: int
    ) -> list[Answer]:
        padded = np.zeros((batch, *pixels.shape[1:]), np.uint8)
        padded[: len(pixels)] = pixels
        preprocessing = self.config.preprocessing
        values = network.normalise(
            torch.from_numpy(padded).to(self._device), preprocessing.mean, preprocessing.std
        )
        outputs = self._network(values)
        return self.task.answering.answers(self._head, outputs, sizes, self.frame)
