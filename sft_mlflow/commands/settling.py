"""What follows from options and data before the first trial."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from sft_mlflow.commands.observer import Notice, Observer, Progress
from sft_mlflow.data.loading import Loaded
from sft_mlflow.data.truth import TaskName
from sft_mlflow.errors import OptionsError
from sft_mlflow.options import FRESH, FinetuneOptions
from sft_mlflow.search import study as studies
from sft_mlflow.search.space import Space
from sft_mlflow.search.study import Limits
from sft_mlflow.tasks import TASKS
from sft_mlflow.training.prepare import Prepared, prepare
from sft_mlflow.training.recipe import Recipe
from sft_mlflow.training.trial import Material
from sft_mlflow.whole_file import whole_file

DEFAULT_TRIALS = 12
LEAST_PATIENCE = 4
# Share of a trial's steps over which its weights are averaged.
AVERAGING = 0.1
# Of a budget, that probes which are trained may take, with what they are asked.
PROBES_SHARE = 1 / 3
# 100 draws of the test images for the intervals of average precision take 0.03 s an image.
JUDGING_SECONDS = 0.05
# Registration, report and the last messages, beside the evaluation whose length is estimated.
CLOSING_SECONDS = 10.0


@dataclass(frozen=True)
class Settled:
    """What follows from options and data before the first trial.

    recipe: what trials of all sources share.
    """

    objective: str
    objective_reason: str
    recipe: Recipe
    prepared: Mapping[str, Prepared]
    space: Space


def refuse_unfit(options: FinetuneOptions, task: TaskName) -> None:
    """Raises OptionsError that names every option that means nothing for the task."""
    learning, metrics = TASKS[task].learning, TASKS[task].judging.metrics
    problems = []
    if options.metric not in ("auto", *metrics):
        problems.append(f"--metric {options.metric}: {task} has {' and '.join(metrics)}.")
    if not learning.is_linear and options.mixup:
        problems.append(f"--mixup {options.mixup:g}: images of {task} are not blended; use 0.")
    if not learning.takes_settings and options.class_weights == "on":
        problems.append(f"--class-weights on: the loss of {task} weighs its classes itself.")
    if not learning.takes_settings and options.label_smoothing:
        problems.append(f"--label-smoothing {options.label_smoothing:g}: {task} has none; use 0.")
    if task != "segmentation" and options.ignore_index is not None:
        problems.append(f"--ignore-index {options.ignore_index}: {task} has no masks.")
    if problems:
        raise OptionsError("\n".join(problems))


def settle(
    options: FinetuneOptions,
    loaded: Loaded,
    material: Material,
    ladders: Mapping[str, tuple[int, ...]],
    observer: Observer,
    begun: float,
) -> Settled:
    """Objective, class weights, what the probe of each source tells, and the space of the search.

    ladders: depths to search of each source; begun: when the command began, on the clock of
    `time.monotonic`. Raises OptionsError for an image size that a source does not take, and for
    more combinations than a study may have trials.
    """
    task = TASKS[material.task]
    counts = loaded.manifest.counts("train")
    if options.metric == "auto":
        objective, reason = task.judging.objective(counts)
    else:
        objective, reason = options.metric, "as asked for"
    observer(Notice(f"Objective: {objective} on validation ({reason})"))
    weights = None
    imbalanced = task.learning.are_imbalanced(counts)
    if options.class_weights == "on" or (options.class_weights == "auto" and imbalanced):
        weights = task.learning.class_weights(loaded.manifest)
    recipe = shared_recipe(options, material.task, objective, weights)
    prepared = {}
    for number, uri in enumerate(options.source, 1):
        of_source = replace(recipe, source=uri)
        deadline = None
        if options.budget_minutes is not None:
            share = PROBES_SHARE * number / len(options.source)
            deadline = begun + share * options.budget_minutes * 60
        prepared[uri] = _prepared(options, material, of_source, observer, deadline)
    with_probe = options.head_start == "probe"
    # Unchanged images have one view.
    changed = any(found.augmentation != "none" for found in prepared.values())
    space = Space(
        ladders={
            uri: tuple(d for d in depths if d or not with_probe) for uri, depths in ladders.items()
        },
        probes=tuple(uri for uri, depths in ladders.items() if with_probe and 0 in depths),
        lr_min=options.lr_min,
        lr_max=options.lr_max,
        rates=_rates(options),
        others={
            name: values
            for name, values in _others(options).items()
            if len(values) > 1 and (name != "views" or changed)
        },
    )
    if studies.MOST_TRIALS < space.points < math.inf:
        raise OptionsError(
            f"{space.points} combinations of --depths, --lr, --batch-size and --views are more "
            f"than the {studies.MOST_TRIALS} trials that a study may have; give fewer of them, or "
            f"--lr-min and --lr-max instead of --lr."
        )
    return Settled(objective, reason, recipe, prepared, space)


def words_of(settled: Settled) -> dict[str, str]:
    """What options may leave open, as it was settled; of several sources each value once."""
    sources = settled.prepared.values()
    found: dict[str, list[str]] = {
        "image_size": [str(one.image_size) for one in sources],
        "precision": [one.precision for one in sources],
        "augment": [one.augmentation for one in sources],
    }
    several = {word: ", ".join(dict.fromkeys(values)) for word, values in found.items()}
    return {"metric": settled.objective, **several}


def recipe_of(options: FinetuneOptions, shared: Recipe, prepared: Prepared) -> Recipe:
    """What all trials of that source share; each trial replaces what is searched."""
    return replace(
        shared,
        source=prepared.uri,
        batch_size=_others(options)["batch_size"][0],
        image_size=prepared.image_size,
        augmentation=prepared.augmentation,
        precision=prepared.precision,
    )


def shared_recipe(
    options: FinetuneOptions, task: TaskName, objective: str, weights: tuple[float, ...] | None
) -> Recipe:
    """What trials of all sources share, settled before any source is looked at."""
    learning = TASKS[task].learning
    # A trained head falls behind while the rate is high, and is passed when it has come down.
    patience = max(LEAST_PATIENCE, options.epochs // 2) if learning.is_linear else options.epochs
    return Recipe(
        source="",
        depth=0,
        lr=None,
        epochs=options.epochs,
        # The largest of those that are searched: it is what takes the most memory and time.
        batch_size=max(options.batch_size),
        image_size=0,
        optimizer=options.optimizer,
        weight_decay=options.weight_decay,
        layer_decay=options.layer_decay,
        label_smoothing=learning.label_smoothing
        if options.label_smoothing is None
        else options.label_smoothing,
        class_weights=weights,
        augmentation="none",
        views=_others(options)["views"][0],
        mixup=options.mixup,
        head_start=options.head_start,
        patience=options.patience or patience,
        precision="float32",
        metric=objective,
        seed=options.seed,
        # A random head begins as plain fine-tuning does, whose result are its last weights.
        averaging=AVERAGING if options.head_start == "probe" else 0.0,
    )


def _rates(options: FinetuneOptions) -> tuple[float, ...]:
    """The learning rates to try; empty where any in the range will do."""
    return options.lr or ((options.lr_min,) if options.lr_min == options.lr_max else ())


def _others(options: FinetuneOptions) -> dict[str, tuple[int, ...]]:
    """Values to try of further fields of the recipe."""
    counts = (options.epochs if word == FRESH else int(word) for word in options.views)
    # More views than there are epochs are as many as epochs.
    views = tuple(dict.fromkeys(min(count, options.epochs) for count in counts))
    return {"views": views, "batch_size": options.batch_size}


def limits_of(options: FinetuneOptions, loaded: Loaded, settled: Settled, begun: float) -> Limits:
    """When the search has to end so that the budget, counted from `begun`, is kept.

    Raises OptionsError where nothing of the budget is left.
    """
    points, timed = settled.space.points, options.budget_minutes is not None
    default = studies.MOST_TRIALS if timed or points < math.inf else DEFAULT_TRIALS
    # Once each point was tried, another trial would be one that was.
    trials = int(min(options.trials or default, points))
    if options.budget_minutes is None:
        return Limits(trials, None)
    slowest = max(p.seconds_an_image for p in settled.prepared.values())
    linear = TASKS[loaded.manifest.task].learning.is_linear
    # The test side is read from its files; trials that are stopped still validate once or twice.
    testing = 2 * slowest * len(loaded.manifest.side("test"))
    testing += 2 * slowest * len(loaded.manifest.side("valid")) * options.workers
    testing += 0 if linear else JUDGING_SECONDS * len(loaded.manifest.side("test"))
    deadline = begun + options.budget_minutes * 60 - testing - CLOSING_SECONDS
    if deadline <= time.monotonic():
        raise OptionsError(
            f"--budget-minutes {options.budget_minutes:g} is used up before the first trial: "
            f"reading the data, the probe and the evaluation take "
            f"{(time.monotonic() - begun + testing + CLOSING_SECONDS) / 60:.1f} minutes."
        )
    return Limits(trials, deadline)


def _prepared(
    options: FinetuneOptions,
    material: Material,
    recipe: Recipe,
    observer: Observer,
    deadline: float | None,
) -> Prepared:
    """What the probe of the source tells; a study that goes on keeps what it was begun with.

    Above all the precision, which was measured: on another day another one could be faster.
    """
    uri, objective = recipe.source, recipe.metric
    path = material.folder / "prepared.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    if uri in kept:
        return Prepared(**kept[uri])
    observer(Notice(f"Looking at {uri}"))
    found = prepare(
        material,
        recipe,
        image_size=options.image_size,
        augmentation=None if options.augment == "auto" else options.augment,
        precision=None if options.precision == "auto" else options.precision,
        progress=lambda what, done, total: observer(Progress(what, done, total)),
        deadline=deadline,
    )
    with whole_file(path) as beside:
        beside.write_text(json.dumps({**kept, uri: asdict(found)}, indent=2))
    probed = found.metrics.get(f"valid/{objective}")
    observer(
        Notice(
            f"  {found.image_size} px, {found.full_depth} stages, {found.precision}, augmentation "
            f"{found.augmentation}"
            + ("" if probed is None else f"; probe: {objective} {probed:.4f}")
        )
    )
    for remark in found.remarks:
        observer(Notice(f"  {remark}"))
    return found
