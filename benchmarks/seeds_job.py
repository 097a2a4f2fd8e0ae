"""A new head on a frozen ResNet-50, two epochs in batches of 4: by hand, and with the product.

`plain` measures a stretch of the loop that a user writes and reckons the whole from it; `ours` runs
to its end, with one learning rate and with twenty. Each arm runs in a process of its own and writes
its line into one JSON file; README.md says what is compared.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from benchmarks import arms, machine

EPOCHS, BATCH_SIZE, SIZE, RATE, MOMENTUM = 2, 4, 224, 1e-3, 0.9
RATES = 20
MODULE = "benchmarks.seeds_job"


@dataclass(frozen=True)
class Job:
    """images: {train,valid,test}/CLASS/*.jpg; stretch: steps of the plain loop to measure."""

    images: Path
    work: Path
    threads: int
    stretch: int


def main() -> None:
    options = parse()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.arm == "all":
        arms.run_all(MODULE, ARMS, options.threads)
        return
    os.environ |= machine.threads(options.threads)
    work = options.work / options.arm
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    counts = {"train": options.train, "valid": options.valid, "test": options.valid}
    shutil.rmtree(options.work / "images", ignore_errors=True)
    images = machine.first_images(options.images, options.work / "images", counts)
    found = ARMS[options.arm](Job(images, work, options.threads, options.stretch))
    print_table(arms.keep_line(MODULE, options, {**found, "images_a_class": counts}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="seeds_job", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--images", type=machine.absolute, required=True, help="images as CLASS/*.jpg")
    add("--work", type=machine.absolute, required=True, help="folder for all that is written")
    add("--arm", choices=(*ARMS, "all"), default="all")
    add(
        "--train",
        type=int,
        default=500,
        help="training images of each class (default: %(default)s)",
    )
    add(
        "--valid",
        type=int,
        default=20,
        help="validation images of each class (default: %(default)s)",
    )
    add("--stretch", type=int, default=250, help="steps of `plain` (default: %(default)s)")
    add("--threads", type=int, default=os.cpu_count(), help="of each arm (default: all cores)")
    add("--output", type=machine.absolute, help="JSON file (default: results.json below --work)")
    options = parser.parse_args()
    options.output = options.output or options.work / "results.json"
    return options


def plain(job: Job) -> dict[str, object]:
    """The loop of PyTorch's transfer learning tutorial; one stretch of steps, and one of eval."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.models import resnet50
    from torchvision.transforms import v2

    torch.set_num_threads(job.threads)
    transform = v2.Compose(
        [
            v2.Resize((SIZE, SIZE), antialias=True),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    sides = {side: ImageFolder(job.images / side, transform) for side in ("train", "valid")}
    model = resnet50()
    model.requires_grad_(False)
    model.fc = nn.Linear(model.fc.in_features, len(sides["train"].classes))
    optimizer = torch.optim.SGD(model.fc.parameters(), lr=RATE, momentum=MOMENTUM)

    def batches(side: str) -> Iterator[list[torch.Tensor]]:
        # One process decodes ahead. The first batch, which waits for it, is not in the measure.
        loader = DataLoader(
            sides[side], BATCH_SIZE, shuffle=side == "train", num_workers=1, prefetch_factor=16
        )
        return islice(iter(loader), 1, 1 + job.stretch)

    model.train()
    # The body is frozen: neither its weights nor its BatchNorm may move.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    steps, begun = 0, time.perf_counter()
    for images, labels in batches("train"):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    step = (time.perf_counter() - begun) / steps
    model.eval()
    steps, begun = 0, time.perf_counter()
    with torch.no_grad():
        for images, labels in batches("valid"):
            (model(images).argmax(1) == labels).sum().item()
            steps += 1
    look = (time.perf_counter() - begun) / steps
    epoch = (len(sides["train"]) * step + len(sides["valid"]) * look) / BATCH_SIZE
    return {
        "seconds_one": EPOCHS * epoch,
        "seconds_twenty": RATES * EPOCHS * epoch,
        "measured": f"{job.stretch} steps; the rest is reckoned from them",
        "images_a_second": BATCH_SIZE / step,
    }


def ours(job: Job) -> dict[str, object]:
    """The product's command, from an empty store each time, to its end with model and report."""
    return {
        "seconds_one": _finetune(job, "one", [f"--lr={RATE}"], trials=1),
        "seconds_twenty": _finetune(job, "twenty", [], trials=RATES),
    }


def _finetune(job: Job, name: str, rates: list[str], trials: int) -> float:
    folder = job.work / name
    folder.mkdir()
    command = [
        machine.PRODUCT,
        "finetune",
        f"--data={job.images}",
        "--source=torchvision://resnet50/random",
        "--depths=0",
        "--head-start=random",
        "--optimizer=sgd",
        "--weight-decay=0",
        "--label-smoothing=0",
        "--augment=none",
        f"--batch-size={BATCH_SIZE}",
        f"--epochs={EPOCHS}",
        f"--image-size={SIZE}",
        f"--trials={trials}",
        *rates,
    ]
    begun = time.perf_counter()
    environment = os.environ | machine.product(folder)
    with (folder / "printed.txt").open("w") as printed:
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=printed)
    return time.perf_counter() - begun


def ceiling(job: Job) -> dict[str, object]:
    """What cannot be avoided, alone: decode, the body once an image, the head's steps."""
    import torch
    from torch import nn
    from torch.fx.experimental.optimization import fuse
    from torchvision.datasets import ImageFolder
    from torchvision.models import resnet50
    from torchvision.transforms import v2

    from sft_mlflow import runtime

    runtime.tune()
    torch.set_num_threads(job.threads)
    to_tensor = v2.Compose([v2.Resize((SIZE, SIZE), antialias=True), v2.PILToTensor()])
    body = resnet50()
    body.fc = nn.Identity()
    # BatchNorm folded into the convolutions: nothing of a frozen body is computed that need not be.
    model = fuse(body.eval()).to(memory_format=torch.channels_last)
    classes = len(list((job.images / "train").iterdir()))

    @torch.no_grad()
    def features(side: str, bfloat16: bool) -> tuple[torch.Tensor, torch.Tensor]:
        found, labels = [], []
        data = ImageFolder(job.images / side, to_tensor)
        rows = iter(range(len(data)))
        while some := [data[row] for row in islice(rows, 64)]:
            images = torch.stack([image for image, _ in some]).float().div_(127.5).sub_(1)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
                found.append(model(images.contiguous(memory_format=torch.channels_last)).float())
            labels += [label for _, label in some]
        return torch.cat(found), torch.tensor(labels)

    begun = time.perf_counter()
    values, targets = features("train", bfloat16=True)
    valid, _ = features("valid", bfloat16=False)
    once = time.perf_counter() - begun
    head = nn.Linear(values.shape[1], classes)
    optimizer = torch.optim.SGD(head.parameters(), lr=RATE, momentum=MOMENTUM)
    begun = time.perf_counter()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(values)).split(BATCH_SIZE):
            loss = nn.functional.cross_entropy(head(values[rows]), targets[rows])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            head(valid)
    trial = time.perf_counter() - begun
    return {"seconds_one": once + trial, "seconds_twenty": once + RATES * trial}


# In the order of running.
ARMS: dict[str, Callable[[Job], dict[str, object]]] = {
    "plain": plain,
    "ours": ours,
    "ceiling": ceiling,
}


def print_table(lines: dict[str, dict]) -> None:
    print("\n| arm | one learning rate, s | twenty, s | as multiples of ours |\n|---|---|---|---|")
    base = lines.get("ours")
    for arm in (arm for arm in ARMS if arm in lines):
        one, twenty = lines[arm]["seconds_one"], lines[arm]["seconds_twenty"]
        ratios = ""
        if base:
            ratios = f"{one / base['seconds_one']:.2f}, {twenty / base['seconds_twenty']:.2f}"
        print(f"| {arm} | {one:.0f} | {twenty:.0f} | {ratios} |")


if __name__ == "__main__":
    main()
