"""Fine-tuning as it is written by hand: PyTorch, Optuna's grid and MLflow, one trial after another.

The frozen blocks are in eval mode and have no gradients, so the loop does no more than it has to
without reuse. `tuned` adds what a careful user would: bfloat16, channels-last and images that are
decoded once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import mlflow
import optuna
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.models import resnet50
from torchvision.transforms import v2

from benchmarks.nautilus.workload import BATCH_SIZES, BLOCKS, EPOCHS, RATES, SIZE, Workload

MEASURED_EPOCHS = 1
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Files(Dataset):
    def __init__(self, files: list[tuple[Path, int]]) -> None:
        self.files = files
        self.transform = v2.Compose(
            [
                v2.Resize((SIZE, SIZE), antialias=True),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        path, label = self.files[row]
        return self.transform(Image.open(path).convert("RGB")), label


@dataclass(frozen=True)
class Style:
    """Whether as users write it, or with what a careful one adds."""

    careful: bool

    def loader(self, data: Dataset, batch_size: int, shuffle: bool) -> DataLoader:
        return DataLoader(data, batch_size, shuffle=shuffle, num_workers=0 if self.careful else 1)

    def data(self, workload: Workload, side: str) -> Dataset:
        files = Files(workload.files(side))
        if not self.careful:
            return files
        images, labels = zip(*files, strict=True)
        return TensorDataset(torch.stack(images), torch.tensor(labels))

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.careful)


def run(workload: Workload, folder: Path, style: Style) -> dict[str, object]:
    """An epoch of each depth and batch size; other epochs and learning rates take as long."""
    begun = time.perf_counter()
    torch.set_num_threads(workload.threads)
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    mlflow.set_experiment("nautilus")
    train, valid = (style.data(workload, side) for side in ("train", "valid"))
    grid = {"block": list(BLOCKS), "batch_size": list(BATCH_SIZES)}
    study = optuna.create_study(
        storage=f"sqlite:///{folder / 'optuna.db'}",
        sampler=optuna.samplers.GridSampler(grid, seed=0),
        direction="maximize",
    )

    def objective(trial: optuna.Trial) -> float:
        block = trial.suggest_categorical("block", BLOCKS)
        batch_size = trial.suggest_categorical("batch_size", BATCH_SIZES)
        with mlflow.start_run():
            mlflow.log_params({**trial.params, "lr": RATES[0]})
            accuracy = fine_tune(workload, style, train, valid, block, batch_size, RATES[0], folder)
            mlflow.log_artifact(str(folder / "model.pt"))
        return accuracy

    prepared = time.perf_counter() - begun
    trials_begun = time.perf_counter()
    study.optimize(objective, n_trials=len(BLOCKS) * len(BATCH_SIZES))
    seconds = time.perf_counter() - trials_begun
    return {
        "seconds": prepared + seconds * EPOCHS / MEASURED_EPOCHS * len(RATES),
        "measured": f"one epoch of {len(study.trials)} trials, times {EPOCHS} epochs and "
        f"{len(RATES)} learning rates",
        "seconds_measured": prepared + seconds,
    }


def fine_tune(
    workload: Workload,
    style: Style,
    train: Dataset,
    valid: Dataset,
    block: str,
    batch_size: int,
    rate: float,
    folder: Path,
) -> float:
    """Validation accuracy of the last epoch."""
    torch.manual_seed(0)
    model = resnet50(num_classes=len(workload.classes))
    if style.careful:
        model = model.to(memory_format=torch.channels_last)
    trained = freeze_up_to(model, block)
    optimizer = torch.optim.AdamW([p for m in trained for p in m.parameters()], lr=rate)
    accuracy = 0.0
    for epoch in range(MEASURED_EPOCHS):
        model.eval()
        for module in trained:
            module.train()
        total = 0.0
        for images, labels in style.loader(train, batch_size, shuffle=True):
            if style.careful:
                images = images.to(memory_format=torch.channels_last)
            with style.autocast():
                outputs = model(images)
            loss = nn.functional.cross_entropy(outputs.float(), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item()
        accuracy = validate(model, style, valid)
        mlflow.log_metrics({"loss": total, "accuracy": accuracy}, step=epoch)
    torch.save(model.state_dict(), folder / "model.pt")
    return accuracy


@torch.no_grad()
def validate(model: nn.Module, style: Style, valid: Dataset) -> float:
    model.eval()
    right = 0
    for images, labels in style.loader(valid, 64, shuffle=False):
        if style.careful:
            images = images.to(memory_format=torch.channels_last)
        with style.autocast():
            right += int((model(images).argmax(1) == labels).sum())
    return right / len(valid)


def freeze_up_to(model: nn.Module, block: str) -> list[nn.Module]:
    """Freeze all before that block; gives back what trains."""
    blocks = [
        (f"{name}.{number}", child)
        for name in ("layer1", "layer2", "layer3", "layer4")
        for number, child in model.get_submodule(name).named_children()
    ]
    names = [name for name, _ in blocks]
    trained = [child for _, child in blocks[names.index(block) :]] + [model.fc]
    model.requires_grad_(False)
    for module in trained:
        module.requires_grad_(True)
    return trained
