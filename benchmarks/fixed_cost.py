"""What a study costs beside its trials: MLflow, Optuna, packaging, test, registration, report.

`study` is the default job to its end. `alone` runs the trials that it ran once more, from their
recipes and an empty store: the same data, probe and training, but no study, no tracking and no
report. Both start a process of their own; they take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks import machine
from sft_mlflow import runtime

MODULE = "benchmarks.fixed_cost"


def main() -> None:
    options = parse()
    if options.part is not None:
        # As the command line does.
        runtime.tune()
        {"study": study, "alone": alone}[options.part](options.work, options.epochs)
        runtime.skip_last_collection()
        return
    lines = []
    print("| turn | study, s | alone, s | trials | a trial, s | of the study | `--help`, s |")
    print("|---|---|---|---|---|---|---|")
    for turn in range(options.turns):
        folder = options.work / str(turn)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        part = [sys.executable, "-m", MODULE, f"--work={folder}", f"--epochs={options.epochs}"]
        whole, bare = (
            seconds_of([*part, "--part", name], folder, options.threads)
            for name in ("study", "alone")
        )
        start = seconds_of([machine.PRODUCT, "finetune", "--help"], folder, options.threads)
        trials = len(json.loads((folder / "recipes.json").read_text()))
        share = (whole - bare) / whole
        lines.append({"study": whole, "alone": bare, "help": start, "trials": trials})
        print(
            f"| {turn} | {whole:.1f} | {bare:.1f} | {trials} | {(whole - bare) / trials:.2f} "
            f"| {share:.1%} | {start:.2f} |",
            flush=True,
        )
    costs = [(line["study"] - line["alone"]) / line["trials"] for line in lines]
    print(f"\nmedian: {statistics.median(costs):.2f} s a trial")
    machine.write_report(options.output, MODULE, options.threads, {"lines": lines})


def seconds_of(command: list[str], folder: Path, threads: int) -> float:
    environment = os.environ | machine.threads(threads) | machine.product(folder)
    begun = time.perf_counter()
    with (folder / "printed.txt").open("a") as printed:
        subprocess.run(command, env=environment, check=True, stdout=printed, stderr=printed)
    return time.perf_counter() - begun


def study(folder: Path, epochs: int) -> None:
    """The default job; leaves the recipes of its trials."""
    with runtime.loading():
        from sft_mlflow.commands import finetune
        from sft_mlflow.options import FinetuneOptions
        from sft_mlflow.search.events import TrialStarted

    recipes = []

    def keep(event: object) -> None:
        if isinstance(event, TrialStarted):
            recipes.append(asdict(event.recipe))

    # A trial that is pruned would have to be stopped at the same epoch.
    finetune(FinetuneOptions(epochs=epochs, patience=epochs, prune=False), keep)
    (folder / "recipes.json").write_text(json.dumps(recipes))


def alone(folder: Path, epochs: int) -> None:
    """The same trials, and what they begin with."""
    with runtime.loading():
        from benchmarks.single_trials import made_ready, trial
        from sft_mlflow.options import FinetuneOptions
        from sft_mlflow.training.recipe import Recipe

    bare = folder / "alone"
    bare.mkdir()
    material, _ = made_ready(FinetuneOptions().data, bare, epochs)
    for number, recipe in enumerate(json.loads((folder / "recipes.json").read_text())):
        trial(material, Recipe(**recipe), bare / str(number))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fixed_cost", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--work", type=machine.absolute, required=True, help="folder for all that is written")
    add("--output", type=machine.absolute, help="JSON file (default: results.json below --work)")
    add("--epochs", type=int, default=2)
    add("--turns", type=int, default=3)
    add("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    add("--part", choices=("study", "alone"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.output = options.output or options.work / "results.json"
    return options


if __name__ == "__main__":
    main()
