"""In which arithmetic to train on this machine: measured, not assumed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sft_mlflow.errors import OptionsError
from sft_mlflow.training.recipe import Precision

STEPS = 5
# Less than this is noise, and float32 is what everyone can reproduce.
WORTHWHILE = 1.15


@dataclass(frozen=True)
class Arithmetic:
    """How the training steps compute; weights and optimiser stay in float32."""

    precision: Precision
    device_type: str

    def autocast(self) -> torch.autocast:
        """A context in which convolutions and products run in this precision."""
        return torch.autocast(
            self.device_type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"
        )


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is the best one here. Raises OptionsError if it is absent."""
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(kind for kind, here in present.items() if here))
    if not present[name]:
        here = ", ".join(kind for kind, is_here in present.items() if is_here)
        raise OptionsError(f"--device {name}: not on this machine; it has {here}.")
    return torch.device(name)


def faster_precision(
    model: nn.Module, shape: tuple[int, int], batch_size: int, device: torch.device
) -> Precision:
    """bfloat16 where training steps of this model gain by it on this machine, else float32.

    Both are timed side by side, turn by turn, and their medians compared. shape: height and width
    of the images in pixels.
    """
    images = torch.zeros(batch_size, 3, *shape, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    kinds: tuple[Precision, ...] = ("float32", "bfloat16")
    seconds: dict[Precision, list[float]] = {kind: [] for kind in kinds}
    for _ in range(STEPS):
        for kind in kinds:
            start = time.perf_counter()
            _step(model, images, Arithmetic(kind, device.type))
            seconds[kind].append(time.perf_counter() - start)
    # The first of each pays for the choice of kernels.
    plain, short = (statistics.median(seconds[kind][1:]) for kind in kinds)
    return "bfloat16" if plain > WORTHWHILE * short else "float32"


def _step(model: nn.Module, images: Tensor, arithmetic: Arithmetic) -> float:
    """A loss of one training step, as a number: so an accelerator has finished it."""
    with arithmetic.autocast():
        outputs = model(images)
    # Any will do: it is the network that takes the time, but in torchvision's detectors, whose loss
    # runs in float32 whatever the network does.
    parts = outputs.values() if isinstance(outputs, Mapping) else (outputs,)
    values = [part.float().square().mean() for part in parts if part.is_floating_point()]
    loss = torch.stack(values).sum()
    loss.backward()
    model.zero_grad()
    return loss.item()
