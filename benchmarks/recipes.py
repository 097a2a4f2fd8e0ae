"""What a recipe costs and brings: single trials of stated recipes, over seeds, on one data set.

No search: every recipe is trained as it stands and judged on many other images, since the few that
a study validates on would tell chance. The first run of each recipe fills the store, `again` is the
same trial once more, as later trials of a study find it. README.md says what was found.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import statistics
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import torch

from sft_mlflow.commands.settling import Settled
from sft_mlflow.commands.settling import recipe_of as recipe_of_study
from sft_mlflow.data.loading import load_manifest
from sft_mlflow.data.manifest import Manifest, Split
from sft_mlflow.options import EMBEDDED_SOURCE, FinetuneOptions, parse
from sft_mlflow.reuse.store import Store
from sft_mlflow.search.space import Space
from sft_mlflow.training.events import FitEnded
from sft_mlflow.training.prepare import Prepared, prepare
from sft_mlflow.training.recipe import Recipe
from sft_mlflow.training.trial import Material, run_trial


def main() -> None:
    options = parser().parse_args()
    torch.set_num_threads(options.threads)
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    loaded = load_manifest(str(options.data), cache=options.work / "data")
    manifest = few(loaded.manifest, options.train_per_class, options.validate)
    counts = {split: len(manifest.side(split)) for split in ("train", "valid")}
    print(f"{manifest.name}: {counts}, {len(manifest.classes)} classes")
    store = Store(options.work / "store", budget_bytes=50 * 10**9)
    cpu = torch.device("cpu")
    material = Material("classification", manifest, options.work, cpu, {}, store, reuse=True)
    prepared = prepare(
        material,
        EMBEDDED_SOURCE,
        image_size=options.image_size,
        shorter_side=loaded.shorter_side,
        augmentation=None,
        precision=None,
        epochs=options.epochs,
        batch_size=16,
        class_weights=None,
        metric="accuracy",
        with_probe=True,
        progress=lambda done, total: None,
    )
    print(f"probe {prepared.metrics['valid/accuracy']:.4f}, {prepared}")
    lines = []
    print("| recipe | mean accuracy | of each seed | seconds | again |\n|---|---|---|---|---|")
    for text in options.recipe:
        found, seconds = [], []
        again = None
        for seed in range(options.seeds):
            recipe = recipe_of(text, prepared, options.epochs, seed)
            accuracy, taken = trial(material, recipe)
            found.append(accuracy)
            seconds.append(taken)
            if options.again and not seed:
                again = trial(material, recipe)[1]
        lines.append({"recipe": text, "accuracy": found, "seconds": seconds, "again": again})
        each = ", ".join(f"{value:.4f}" for value in found)
        print(
            f"| {text} | {statistics.mean(found):.4f} | {each} | {statistics.median(seconds):.1f} "
            f"| {'' if again is None else f'{again:.1f}'} |",
            flush=True,
        )
    report = {"command": shlex.join(["python", *sys.argv]), "images": counts, "lines": lines}
    options.output.write_text(json.dumps(report, indent=2) + "\n")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="recipes", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", required=True, help="as for `sft-mlflow finetune`")
    add("--work", type=Path, required=True, help="folder for everything that is written; emptied")
    add("--output", type=Path, required=True, help="JSON file")
    add("--train-per-class", type=int, default=100)
    add("--validate", type=int, default=1000, help="images to judge by, none of them trained on")
    add("--image-size", type=int)
    add("--epochs", type=int, default=8)
    add("--seeds", type=int, default=3)
    add("--again", action="store_true", help="each recipe's first seed once more, for its time")
    add("--threads", type=int, default=2)
    add("recipe", nargs="+", help='fields of Recipe, as "depth=9 lr=1e-3 views=4 mixup=0.2"')
    return parser


def few(manifest: Manifest, train_per_class: int, validate: int) -> Manifest:
    """That many training images of each class, by digest, and others of them to judge by."""
    taken: Counter[str] = Counter()
    samples = []
    others = 0
    known = [sample for sample in manifest.samples if sample.split != "test"]
    for sample in sorted(known, key=lambda sample: sample.digest):
        split: Split = "train" if taken[sample.label] < train_per_class else "valid"
        taken[sample.label] += split == "train"
        others += split == "valid"
        if split == "train" or others <= validate:
            samples.append(replace(sample, split=split))
    return replace(manifest, samples=tuple(samples))


def recipe_of(text: str, prepared: Prepared, epochs: int, seed: int) -> Recipe:
    """The recipe that `finetune` would take, but for the fields that the text names."""
    options = parse(FinetuneOptions, {"epochs": epochs, "patience": epochs, "seed": seed})
    # Nothing is searched, so the space does not matter.
    space = Space({}, (), options.lr_min, options.lr_max, (epochs,))
    settled = Settled("accuracy", "as asked for", None, {prepared.uri: prepared}, space)
    shared = recipe_of_study(options, settled, prepared.uri)
    recipe = replace(shared, depth=prepared.full_depth, lr=1e-3, views=epochs)
    given = dict(field.split("=", 1) for field in text.split())
    kinds = {name: type(value) for name, value in asdict(recipe).items()}
    return replace(recipe, **{name: kinds[name](value) for name, value in given.items()})


def trial(material: Material, recipe: Recipe) -> tuple[float, float]:
    """Accuracy of the trial's last epoch's model, and its seconds."""
    folder = material.folder / "trial"
    shutil.rmtree(folder, ignore_errors=True)
    begun = time.perf_counter()
    *_, ended = run_trial(material, recipe, folder)
    assert isinstance(ended, FitEnded)
    return ended.value, time.perf_counter() - begun


if __name__ == "__main__":
    main()
