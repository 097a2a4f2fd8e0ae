"""What twenty minutes reach on CIFAR-10 with 100 training images a class, by four roads.

Each arm runs in a process of its own, one after the other, on the same images with the same
number of threads, and writes its line into one JSON file. README.md, one folder up, says what is
compared.
"""

from __future__ import annotations

import time

BEGUN = time.monotonic()  # Before the heavy imports: they are part of an arm's time.

import argparse  # noqa: E402
import math  # noqa: E402
import os  # noqa: E402
import shlex  # noqa: E402
import shutil  # noqa: E402
from importlib import import_module  # noqa: E402

from benchmarks import arms, machine  # noqa: E402
from benchmarks.cifar10_twenty_minutes.arm import Outcome, Setting  # noqa: E402

# In the order of running: module and function, imported only by the process that runs the arm.
ARMS = {
    "ours": ("benchmarks.cifar10_twenty_minutes.ours", "run"),
    "probe": ("benchmarks.cifar10_twenty_minutes.probe", "run"),
    "fastai": ("benchmarks.cifar10_twenty_minutes.with_fastai", "fine_tune"),
    "scratch": ("benchmarks.cifar10_twenty_minutes.with_fastai", "from_scratch"),
}
MODULE = "benchmarks.cifar10_twenty_minutes"
IMAGES_A_CLASS = {"train": 100, "test": 200}


def main() -> None:
    options = parse()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.arm == "all":
        arms.run_all(MODULE, ARMS, options.threads)
        return
    os.environ |= machine.threads(options.threads)
    folder = options.work / "images"
    # Training images are the first by name, test images too: the sides have folders of their own.
    shutil.rmtree(folder, ignore_errors=True)
    for side, share in IMAGES_A_CLASS.items():
        machine.first_images(options.images / side, folder, {side: share})
    module, function = ARMS[options.arm]
    setting = Setting(
        folder, options.work / options.arm, BEGUN, options.minutes * 60, options.finetune
    )
    shutil.rmtree(setting.work, ignore_errors=True)
    setting.work.mkdir()
    outcome = getattr(import_module(module), function)(setting)
    found = line(outcome, options, time.monotonic() - BEGUN)
    print_table(arms.keep_line(MODULE, options, found))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="cifar10_twenty_minutes",
        description="Test accuracy on CIFAR-10 after --minutes, with 100 training images a class.",
    )
    add = parser.add_argument
    add(
        "--images",
        type=machine.absolute,
        required=True,
        help="CIFAR-10 as {train,test}/CLASS/*.jpg",
    )
    add(
        "--work", type=machine.absolute, required=True, help="folder for everything that is written"
    )
    add("--arm", choices=(*ARMS, "all"), default="all")
    add("--minutes", type=float, default=20, help="wall time of each arm (default: %(default)s)")
    add("--threads", type=int, default=os.cpu_count(), help="of each arm (default: all cores)")
    add("--output", type=machine.absolute, help="JSON file (default: results.json below --work)")
    add(
        "--finetune",
        type=shlex.split,
        default=[],
        metavar="OPTIONS",
        help="further options of `sft-mlflow finetune`, in one quoted string",
    )
    options = parser.parse_args()
    options.output = options.output or options.work / "results.json"
    return options


def line(outcome: Outcome, options: argparse.Namespace, seconds: float) -> dict[str, object]:
    low, high = wilson(outcome.correct, outcome.images)
    return {
        "test_accuracy": outcome.correct / outcome.images,
        "interval_95": [low, high],
        "correct": outcome.correct,
        "images": outcome.images,
        "minutes_allowed": options.minutes,
        "seconds_used": round(outcome.seconds, 1),
        "seconds_with_final_test": round(seconds, 1),
        "chosen": outcome.chosen,
        "commands": list(outcome.commands),
    }


def wilson(correct: int, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z = 1.959964
    share = correct / images
    middle = share + z**2 / (2 * images)
    half = z * math.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    return tuple((middle + sign * half) / (1 + z**2 / images) for sign in (-1, 1))


def print_table(lines: dict[str, dict]) -> None:
    print("\n| arm | test accuracy | 95 % interval | seconds used | with the final test | chosen |")
    print("|---|---|---|---|---|---|")
    for arm in (arm for arm in ARMS if arm in lines):
        found = lines[arm]
        low, high = found["interval_95"]
        print(
            f"| {arm} | {found['test_accuracy']:.4f} | {low:.4f} to {high:.4f} "
            f"| {found['seconds_used']:.0f} of {found['minutes_allowed'] * 60:.0f} "
            f"| {found['seconds_with_final_test']:.0f} | {found['chosen']} |"
        )
    for arm in (arm for arm in ARMS if arm in lines):
        versions = ", ".join(f"{k} {v}" for k, v in lines[arm]["versions"].items())
        print(f"\n{arm}: {lines[arm]['command']}")
        for command in lines[arm]["commands"]:
            print(f"    {command}")
        print(f"    {lines[arm]['threads']} threads; Python {lines[arm]['python']}, {versions}")


if __name__ == "__main__":
    main()
