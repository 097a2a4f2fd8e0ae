"""What all arms are asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# Trainable from there on: the last four, three, two blocks and the last one.
BLOCKS = ("layer3.5", "layer4.0", "layer4.1", "layer4.2")
BATCH_SIZES = (16, 32)
RATES = (1e-4, 3e-4, 1e-3)
EPOCHS = 5
SIZE = 224


@dataclass(frozen=True)
class Workload:
    """images: {train,valid,test}/CLASS/*.jpg."""

    images: Path
    threads: int

    @property
    def classes(self) -> list[str]:
        return sorted(path.name for path in (self.images / "train").iterdir())

    def files(self, side: str) -> list[tuple[Path, int]]:
        return [
            (path, number)
            for number, name in enumerate(self.classes)
            for path in sorted((self.images / side / name).glob("*.jpg"))
        ]
