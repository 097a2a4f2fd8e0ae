"""How long until a study is as good as the best of a plain loop's twenty trials?

`plain` is a loop as users write it: PyTorch, Optuna's default sampler over the product's default
space of depths and learning rates, MLflow, augmentation by torchvision's transforms. `ours` is the
product's study. Both have the same images, the same validation side, the same network and weights
and as many epochs a trial. What counts is the wall time, process start included, until an epoch's
validation accuracy first reaches the best of plain's trials; for plain that is its own first hit.
"""

from __future__ import annotations

import time

BEGUN = time.perf_counter()  # Before the heavy imports: they are part of an arm's time.

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import shutil  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING  # noqa: E402

from benchmarks import machine  # noqa: E402

if TYPE_CHECKING:
    from torch import nn

MODULE = "benchmarks.time_to_quality"
EPOCHS, BATCH_SIZE = 5, 16
# As `--depths auto` has them for this network of 18 stages, and the default learning rates.
DEPTHS, RATES = (0, 4, 9, 18), (1e-4, 2e-3)
# Between the stem and the last convolution.
BLOCKS = (
    *("blocks.0.0", "blocks.1.0", "blocks.1.1", "blocks.2.0", "blocks.2.1", "blocks.3.0"),
    *("blocks.3.1", "blocks.3.2", "blocks.4.0", "blocks.4.1", "blocks.4.2", "blocks.5.0"),
    *("blocks.5.1", "blocks.5.2", "blocks.5.3", "blocks.6.0"),
)

# Seconds since the process began, and the validation accuracy of an epoch that ended then.
Seen = list[tuple[float, float]]


def main() -> None:
    options = parse()
    if options.part is not None:
        seen = {"plain": plain, "ours": ours}[options.part](options)
        (options.work / f"{options.part}.json").write_text(json.dumps(seen))
        return
    lines = []
    print("| seed | plain: trials | their best | hit after, s | ours: hit after, s | of plain |")
    print("|---|---|---|---|---|---|")
    for seed in options.seeds:
        work = options.work / str(seed)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        counts = {"train": options.train, "valid": options.valid, "test": 10}
        machine.first_images(options.images, work / "images", counts)
        found = {part: run(part, work, seed, options) for part in ("plain", "ours")}
        target = max(value for _, value in found["plain"])
        hits = {part: first(seen, target) for part, seen in found.items()}
        lines.append({"seed": seed, "target": target, **hits, "seen": found})
        trials, share = len(found["plain"]) // EPOCHS, hits["ours"] / hits["plain"]
        print(
            f"| {seed} | {trials} | {target:.4f} "
            f"| {hits['plain']:.0f} | {hits['ours']:.0f} | {share:.2f} |",
            flush=True,
        )
        machine.write_report(options.output, MODULE, options.threads, {"lines": lines})
    print(f"\nmedian: {statistics.median(one['ours'] / one['plain'] for one in lines):.2f}")


def run(part: str, work: Path, seed: int, options: argparse.Namespace) -> Seen:
    command = [sys.executable, "-m", MODULE, f"--images={options.images}", f"--work={work}"]
    command += [f"--seed={seed}", f"--trials={options.trials}", f"--augment={options.augment}"]
    command += [f"--part={part}", f"--size={options.size}", f"--output={options.output}"]
    command += [f"--plain-minutes={options.plain_minutes}"]
    environment = os.environ | machine.threads(options.threads) | machine.product(work)
    with (work / f"{part}.txt").open("w") as printed:
        subprocess.run(command, env=environment, check=True, stdout=printed, stderr=printed)
    return [(seconds, value) for seconds, value in json.loads((work / f"{part}.json").read_text())]


def first(seen: Seen, target: float) -> float:
    return next((seconds for seconds, value in seen if value >= target), float("inf"))


def ours(options: argparse.Namespace) -> Seen:
    """The study to its end; the first accuracy is the probe's."""
    from sft_mlflow import runtime

    # Memory is kept as the command line keeps it.
    runtime.tune()

    from sft_mlflow.commands import finetune
    from sft_mlflow.options import FinetuneOptions
    from sft_mlflow.search.events import TrialEvent
    from sft_mlflow.training.events import EpochEnded

    seen: Seen = []

    def note(event: object) -> None:
        if isinstance(event, TrialEvent) and isinstance(event.event, EpochEnded):
            seen.append((time.perf_counter() - BEGUN, event.event.value))

    finetune(
        FinetuneOptions(
            data=str(options.work / "images"),
            epochs=EPOCHS,
            trials=options.trials,
            seed=options.seed,
            study="quality",
        ),
        note,
    )
    return seen


def plain(options: argparse.Namespace) -> Seen:
    import mlflow
    import optuna
    import torch
    from torch import nn
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import InterpolationMode, v2

    from benchmarks.cifar10_twenty_minutes.source import MEAN, STD

    torch.manual_seed(options.seed)
    size = options.size
    changes = {
        "none": [v2.Resize((size, size), InterpolationMode.BICUBIC)],
        "natural": [
            v2.RandomResizedCrop(size, (0.5, 1.0), interpolation=InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.2, 0.2, 0.2),
        ],
        "light": [
            v2.Resize((size, size), InterpolationMode.BICUBIC),
            v2.RandomAffine(degrees=8, translate=(0.06, 0.06), scale=(0.9, 1.1)),
            v2.ColorJitter(0.2, 0.2),
        ],
    }
    behind = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    transforms = {"train": changes[options.augment], "valid": changes["none"]}
    sides = {
        side: ImageFolder(options.work / "images" / side, v2.Compose([*before, *behind]))
        for side, before in transforms.items()
    }
    loaders = {
        side: DataLoader(data, BATCH_SIZE if side == "train" else 64, side == "train")
        for side, data in sides.items()
    }
    mlflow.set_experiment("plain")
    seen: Seen = []

    def epochs_of(model: nn.Module, trained: nn.ModuleList, rate: float) -> Iterator[float]:
        parameters = [p for p in trained.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=rate)
        steps = EPOCHS * len(loaders["train"])
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        for _ in range(EPOCHS):
            model.eval()
            trained.train()
            for images, labels in loaders["train"]:
                images = images.contiguous(memory_format=torch.channels_last)
                loss = nn.functional.cross_entropy(model(images), labels, label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            model.eval()
            right = 0
            with torch.no_grad():
                for images, labels in loaders["valid"]:
                    right += int((model(images).argmax(1) == labels).sum())
            yield right / len(sides["valid"])

    def objective(trial: optuna.Trial) -> float:
        depth = trial.suggest_categorical("depth", DEPTHS)
        rate = trial.suggest_float("lr", *RATES, log=True)
        model, trained = network(depth, len(sides["train"].classes))
        best = 0.0
        with mlflow.start_run():
            mlflow.log_params(trial.params)
            for epoch, accuracy in enumerate(epochs_of(model, trained, rate)):
                mlflow.log_metric("accuracy", accuracy, step=epoch)
                seen.append((time.perf_counter() - BEGUN, accuracy))
                best = max(best, accuracy)
            torch.save(model.state_dict(), options.work / "model.pt")
            mlflow.log_artifact(str(options.work / "model.pt"))
        return best

    sampler = optuna.samplers.TPESampler(seed=options.seed)
    storage = f"sqlite:///{options.work / 'optuna.db'}"
    study = optuna.create_study(storage=storage, sampler=sampler, direction="maximize")
    study.optimize(objective, options.trials, timeout=60 * options.plain_minutes)
    return seen


def network(depth: int, classes: int) -> tuple[nn.Module, nn.ModuleList]:
    """The pretrained network with a new head, and what of it trains: its last stages."""
    import timm
    import torch
    from torch import nn

    from benchmarks.cifar10_twenty_minutes.source import NETWORK, state_dict

    model = timm.create_model(NETWORK)
    model.load_state_dict(state_dict())
    model.reset_classifier(classes)
    model = model.to(memory_format=torch.channels_last)
    model.requires_grad_(False)
    stages = [
        [model.conv_stem, model.bn1],
        *([model.get_submodule(path)] for path in BLOCKS),
        [model.conv_head, model.bn2],
    ]
    last = stages[len(stages) - depth :]
    trained = nn.ModuleList([*(module for stage in last for module in stage), model.classifier])
    trained.requires_grad_(True)
    return model, trained


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="time_to_quality", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--images", type=machine.absolute, required=True, help="images as CLASS/*.jpg")
    add("--work", type=machine.absolute, required=True, help="folder for all that is written")
    add("--output", type=machine.absolute, required=True, help="JSON file")
    add("--train", type=int, default=100, help="training images of each class")
    add("--valid", type=int, default=100, help="validation images of each class")
    add("--size", type=int, default=128, help="side in pixels in `plain`, as the product takes it")
    add("--augment", choices=("none", "light", "natural"), default="natural", help="in `plain`")
    add("--trials", type=int, default=20)
    add(
        "--plain-minutes",
        type=float,
        default=float("inf"),
        help="`plain` begins no trial after them (default: no end)",
    )
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--seed", type=int, default=0, help=argparse.SUPPRESS)
    add("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    add("--part", choices=("plain", "ours"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
