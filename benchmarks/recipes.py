"""What a recipe costs and brings: single trials of stated recipes, over seeds, on one data set.

No search: every recipe is trained as it stands and judged on many other images, since the few that
a study validates on would tell chance; boxes and masks are judged on their own validation side. The
first run of each recipe fills the store, `again` is the same trial once more, as later trials of a
study find it. README.md says what was found.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import statistics
import sys
from pathlib import Path

import torch

from benchmarks.single_trials import made_ready, recipe_of, trial
from sft_mlflow.data.truth import ignored_values
from sft_mlflow.options import EMBEDDED_SOURCE
from sft_mlflow.tasks import TASKS


def main() -> None:
    options = parser().parse_args()
    torch.set_num_threads(options.threads)
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    classes = options.task == "classification"
    material, prepared = made_ready(
        options.data,
        options.work,
        options.epochs,
        source=options.source,
        image_size=options.image_size,
        few=(options.train_per_class, options.validate) if classes else None,
        reuse=options.reuse == "yes",
        task=options.task,
        ignored=ignored_values(options.ignore_index),
    )
    counts = {split: len(material.manifest.side(split)) for split in ("train", "valid")}
    print(f"{material.manifest.name}: {counts}; {prepared}")
    metric = TASKS[options.task].judging.metrics[0]
    print(f"probe {prepared.metrics[f'valid/{metric}']:.4f}")
    lines = []
    print(f"| recipe | mean {metric} | of each seed | seconds | again |\n|---|---|---|---|---|")
    for text in options.recipe:
        found, seconds = [], []
        again = None
        for seed in range(options.seeds):
            recipe = recipe_of(text, prepared, options.epochs, seed, options.task)
            value, taken = trial(material, recipe, options.work / "trial")
            found.append(value)
            seconds.append(taken)
            if options.again and not seed:
                again = trial(material, recipe, options.work / "trial")[1]
        lines.append({"recipe": text, metric: found, "seconds": seconds, "again": again})
        each = ", ".join(f"{value:.4f}" for value in found)
        print(
            f"| {text} | {statistics.mean(found):.4f} | {each} | {statistics.median(seconds):.1f} "
            f"| {'' if again is None else f'{again:.1f}'} |",
            flush=True,
        )
        report = {
            "command": shlex.join(["python", "-m", "benchmarks.recipes", *sys.argv[1:]]),
            "images": counts,
            "lines": lines,
        }
        options.output.write_text(json.dumps(report, indent=2) + "\n")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="recipes", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", required=True, help="as for `sft-mlflow finetune`")
    add("--work", type=Path, required=True, help="folder for everything that is written; emptied")
    add("--output", type=Path, required=True, help="JSON file")
    add("--source", default=EMBEDDED_SOURCE)
    add("--task", choices=tuple(TASKS), default="classification")
    add("--ignore-index", type=int, help="value of masks' pixels that counts for nothing")
    add("--train-per-class", type=int, default=100)
    add("--validate", type=int, default=1000, help="images to judge by, none of them trained on")
    add("--image-size", type=int)
    add("--epochs", type=int, default=8)
    add("--seeds", type=int, default=3)
    add("--again", action="store_true", help="each recipe's first seed once more, for its time")
    add("--reuse", choices=("yes", "no"), default="yes")
    add("--threads", type=int, default=2)
    add("recipe", nargs="+", help='fields of Recipe, as "depth=9 lr=1e-3 views=4 mixup=0.2"')
    return parser


if __name__ == "__main__":
    main()
