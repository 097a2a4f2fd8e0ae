"""Nautilus's workload: 24 trials of ResNet-50 over 4 freeze depths, with and without reuse.

The shape is that of Nakandala & Kumar, SIGMOD 2022: 4 depths x batches of 16 and 32 x 3 learning
rates, 5 epochs each, 224 pixels. Each arm runs in a process of its own, one after the other, and
writes its line into one JSON file; README.md, one folder up, says what is compared.
"""

from __future__ import annotations

import argparse
import os
import shutil
from importlib import import_module

from benchmarks import arms, machine
from benchmarks.nautilus.workload import Workload

MODULE = "benchmarks.nautilus"
# In the order of running. Each module has `run(workload, folder)` and is imported only by the
# process that runs the arm.
ARMS = {
    "plain": "benchmarks.nautilus.plain",
    "tuned": "benchmarks.nautilus.tuned",
    "ours": "benchmarks.nautilus.ours",
    "without_reuse": "benchmarks.nautilus.without_reuse",
    "ceiling": "benchmarks.nautilus.ceiling",
}


def main() -> None:
    options = parse()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.arm == "all":
        arms.run_all(MODULE, ARMS, options.threads)
        return
    os.environ |= machine.threads(options.threads)
    # The product wants a test side too, which costs no other arm anything.
    counts = {"train": options.train, "valid": options.valid, "test": options.valid}
    shutil.rmtree(options.work / "images", ignore_errors=True)
    images = machine.first_images(options.images, options.work / "images", counts)
    workload = Workload(images, options.threads)
    folder = options.work / options.arm
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    found = import_module(ARMS[options.arm]).run(workload, folder)
    print_table(arms.keep_line(MODULE, options, {**found, "images_a_class": counts}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nautilus", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--images", type=machine.absolute, required=True, help="images as CLASS/*.jpg")
    add("--work", type=machine.absolute, required=True, help="folder for all that is written")
    add("--arm", choices=(*ARMS, "all"), default="all")
    add(
        "--train", type=int, default=32, help="training images of each class (default: %(default)s)"
    )
    add(
        "--valid",
        type=int,
        default=8,
        help="validation images of each class (default: %(default)s)",
    )
    add("--threads", type=int, default=os.cpu_count(), help="of each arm (default: all cores)")
    add("--output", type=machine.absolute, help="JSON file (default: results.json below --work)")
    options = parser.parse_args()
    options.output = options.output or options.work / "results.json"
    return options


def print_table(lines: dict[str, dict]) -> None:
    print("\n| arm | seconds | times as long as ours |\n|---|---|---|")
    ours = lines.get("ours", {}).get("seconds")
    for arm in (arm for arm in ARMS if arm in lines):
        seconds = lines[arm]["seconds"]
        ratio = f"{seconds / ours:.2f}" if ours else ""
        print(f"| {arm} | {seconds:.0f} | {ratio} |")
    if "ceiling" in lines:
        print(f"\nplain over reuse in FLOPs: {lines['ceiling']['flops_ratio']:.2f}")


if __name__ == "__main__":
    main()
