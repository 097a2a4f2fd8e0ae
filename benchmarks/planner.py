"""Is where the planner starts as good as the best of all starts?

For each workload two trials, one after the other, from a store that holds what the probe left
there: once as the planner chooses, once from every cut up to the trained part. The planner knows
neither that there will be two trials nor how long they take, only what it measured beforehand.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks import machine
from benchmarks.single_trials import made_ready, recipe_of, trial
from sft_mlflow.options import EMBEDDED_SOURCE
from sft_mlflow.reuse import planner
from sft_mlflow.reuse.planner import Choice, Need, Prices
from sft_mlflow.reuse.store import Store
from sft_mlflow.training.prepare import Prepared
from sft_mlflow.training.trial import Material

RESNET = "torchvision://resnet50/random"
TRIALS = 2


@dataclass(frozen=True)
class Workload:
    """few: training images of each class, and images to validate with; steps: stages per start."""

    data: str
    source: str
    image_size: int | None
    few: tuple[int, int]
    epochs: int
    recipe: str


def workloads(cifar: str) -> dict[str, Workload]:
    random = "head_start=random augmentation=none precision=bfloat16 averaging=0.0"
    return {
        "seed's job": Workload(
            cifar, RESNET, 224, (20, 40), 2, f"depth=0 batch_size=4 optimizer=sgd {random}"
        ),
        "Nautilus, 4 blocks": Workload(cifar, RESNET, 224, (16, 40), 5, f"depth=4 {random}"),
        "Nautilus, 1 block": Workload(cifar, RESNET, 224, (16, 40), 5, f"depth=1 {random}"),
        "CIFAR-10, half": Workload(cifar, EMBEDDED_SOURCE, None, (20, 100), 5, "depth=9"),
        "CIFAR-10, a quarter": Workload(cifar, EMBEDDED_SOURCE, None, (20, 100), 5, "depth=4"),
        "digits, half": Workload("digits", EMBEDDED_SOURCE, None, (50, 100), 2, "depth=9"),
    }


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    lines = []
    print("| workload | planner starts at | seconds | best fixed start | seconds | ratio |")
    print("|---|---|---|---|---|---|")
    for name, workload in workloads(str(options.images)).items():
        if options.only and options.only not in name:
            continue
        line = compared(workload, options.work / str(len(lines)), options.every)
        lines.append({"workload": name, **line})
        best = min(line["fixed"], key=line["fixed"].__getitem__)
        seconds = line["fixed"][best]
        print(
            f"| {name} | {line['starts']} | {line['planned']:.1f} | {best} | {seconds:.1f} "
            f"| {line['planned'] / seconds:.2f} |",
            flush=True,
        )
    machine.write_report(options.output, "benchmarks.planner", options.threads, {"lines": lines})


def compared(workload: Workload, folder: Path, every: int) -> dict[str, object]:
    """Seconds of the trials as planned, the starts taken, and seconds from fixed starts."""
    folder.mkdir()

    def ready() -> tuple[Material, Prepared]:
        return made_ready(
            workload.data,
            folder,
            workload.epochs,
            source=workload.source,
            image_size=workload.image_size,
            few=workload.few,
            with_probe="random" not in workload.recipe,
        )

    material, prepared = ready()
    recipe = recipe_of(workload.recipe, prepared, workload.epochs)
    # Prices are measured once a study; here, once for all.
    trial(material, replace(recipe, epochs=1), folder / "trial")
    shutil.rmtree(folder / "store")
    ready()
    (folder / "store").mkdir(exist_ok=True)

    def seconds(choose: Callable[..., Choice]) -> float:
        copy = shutil.copytree(folder / "store", folder / "copy")
        on_copy = replace(material, store=Store(copy, material.store.budget_bytes))
        try:
            with patch.object(planner, "choose", choose):
                return sum(trial(on_copy, recipe, folder / "trial")[1] for _ in range(TRIALS))
        finally:
            shutil.rmtree(copy)

    starts = []

    def planned(*args: object) -> Choice:
        choice = own(*args)
        starts.append(choice.start)
        return choice

    own = planner.choose
    # What comes first pays for what a process does once; so something else comes first.
    seconds(own)
    found = seconds(planned)
    last = prepared.full_depth - recipe.depth
    points = sorted({*range(0, last, every), last})
    return {
        "planned": found,
        # Training side and validation side of each trial.
        "starts": starts,
        "fixed": {point: seconds(fixed(point)) for point in points},
    }


def fixed(point: int) -> Callable[..., Choice]:
    """A planner that always starts there."""

    def choose(
        need: Need,
        prices: Prices,
        absent: Callable[[int], int],
        room_bytes: int,
        starts: Iterable[int],
    ) -> Choice:
        return Choice(point, planner._below(point, absent), 0.0)

    return choose


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="planner", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--images", type=machine.absolute, required=True, help="images as CLASS/*.jpg")
    add("--work", type=machine.absolute, required=True, help="for all that is written; emptied")
    add("--output", type=machine.absolute, required=True, help="JSON file")
    add("--every", type=int, default=1, help="of so many cuts one is tried, the last in any case")
    add("--only", default="", help="workloads whose name holds this")
    add("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    return parser.parse_args()


if __name__ == "__main__":
    main()
