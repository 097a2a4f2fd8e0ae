"""A fine-tuned classifier that answers: from pixels to calibrated probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sft_mlflow.sources import architectures, model_folder, network
from sft_mlflow.sources.folding import folded
from sft_mlflow.sources.model_folder import ModelConfig
from sft_mlflow.tasks.classification import calibration

# Every batch has this many rows, the last one padded: a kernel may sum in another order for
# another number of rows, and then the same image would score differently in other company.
BATCH = 64


class Predictor:
    """Probabilities of a model folder's classifier, in float32 arithmetic.

    The same image gives the same answer whichever images come with it.
    """

    def __init__(self, config: ModelConfig, staged: network.StagedNetwork, device: str) -> None:
        self.config = config
        self._device = torch.device(device)
        staged.model.eval().to(self._device).to(memory_format=torch.channels_last)
        self._answer = folded(staged.suffix(staged.full_depth))

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Predictor:
        """The predictor of a model folder; its weights are verified against their SHA-256."""
        config = model_folder.read_config(folder)
        staged = network.bare_network(config.architecture, len(config.classes))
        architectures.load(staged.model, model_folder.read_weights(folder, config), str(folder))
        return cls(config, staged, device)

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, classes) float32 for pixels (N, size, size, 3) uint8, RGB; N may be 0."""
        parts = [np.empty((0, len(self.config.classes)), np.float32)]
        for start in range(0, len(pixels), BATCH):
            parts.append(self._forward(pixels[start : start + BATCH]))
        return np.concatenate(parts)

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(N, classes) float64, rows sum to 1, for pixels (N, size, size, 3) uint8."""
        return calibration.softmax(self.logits(pixels), self.config.temperature)

    @torch.inference_mode()
    def _forward(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        padded = np.zeros((BATCH, *pixels.shape[1:]), np.uint8)
        padded[: len(pixels)] = pixels
        preprocessing = self.config.preprocessing
        batch = network.normalise(
            torch.from_numpy(padded).to(self._device), preprocessing.mean, preprocessing.std
        )
        outputs: NDArray[np.float32] = self._answer(batch)[: len(pixels)].float().cpu().numpy()
        return outputs
