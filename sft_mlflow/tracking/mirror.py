"""What a study tells, as messages to MLflow: one child run a trial.

Optuna's storage is the truth about trials and MLflow mirrors it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from sft_mlflow.data.loading import save_manifest
from sft_mlflow.data.manifest import Manifest
from sft_mlflow.report.pictures import confusion_png
from sft_mlflow.search.events import StudyEvent, TrialEnded, TrialEvent, TrialStarted
from sft_mlflow.sources import model_folder
from sft_mlflow.tasks import TASKS
from sft_mlflow.tasks.base import Frame
from sft_mlflow.tracking import messages
from sft_mlflow.tracking.datasets import dataset_of
from sft_mlflow.tracking.held_out import ANCESTORS, MANIFEST
from sft_mlflow.tracking.outbox import Outbox, now
from sft_mlflow.tracking.packaging import example_image
from sft_mlflow.training.events import EpochEnded, Pictured
from sft_mlflow.training.recipe import Recipe
from sft_mlflow.training.trial import EVIDENCE

# A trial's state in Optuna, which the tag `sft.state` has, and that of its run.
_STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}


def key_of(number: int) -> str:
    """What messages call the run of that trial."""
    return f"trial-{number}"


class Mirror:
    """Turns the events of a study into messages of the outbox, in their order."""

    def __init__(
        self,
        outbox: Outbox,
        manifest: Manifest,
        objective: str,
        *,
        ancestors: frozenset[str],
        best: float | None,
    ) -> None:
        self._outbox = outbox
        self._manifest = manifest
        self._dataset = dataset_of(manifest)
        self._objective = objective
        self._recipes: dict[int, Recipe] = {}
        self._epochs: dict[int, list[EpochEnded]] = {}
        self._best = best
        self._ancestors = ancestors
        self._example = example_image(manifest.side("test")[0].path)

    def __call__(self, event: StudyEvent) -> None:
        """Queue what MLflow should know of the event."""
        if isinstance(event, TrialStarted):
            self._started(event)
        elif isinstance(event, TrialEnded):
            self._ended(event)
        elif isinstance(event, TrialEvent) and isinstance(event.event, EpochEnded):
            epoch = event.event
            self._epochs[event.number].append(epoch)
            key = key_of(event.number)
            self._outbox.put(messages.metrics(key, epoch.metrics, epoch.epoch, epoch.timestamp))

        elif isinstance(event, TrialEvent) and isinstance(event.event, Pictured):
            seen = event.event
            key = key_of(event.number)
            image = messages.image(key, "predictions", seen.path, seen.epoch, seen.timestamp)
            self._outbox.put(image)

    def close(self, status: str) -> None:
        """End the runs of trials that are still open."""
        for number in list(self._recipes):
            self._outbox.put(messages.ended(key_of(number), status, now()))
        self._recipes.clear()

    def _started(self, event: TrialStarted) -> None:
        key, recipe = key_of(event.number), event.recipe
        self._recipes[event.number] = recipe
        self._epochs[event.number] = []
        tags = {"sft.trial": str(event.number), "sft.attempt": str(event.attempt)}
        what = "probe" if recipe.is_probe else f"depth {recipe.depth}"
        name = f"{event.number:03d} {what}"
        self._outbox.put(messages.created(key, name, tags, now()))
        self._outbox.put(messages.parameters(key, recipe_text(recipe)))
        self._outbox.put(messages.dataset(key, self._dataset, "training"))

    def _ended(self, event: TrialEnded) -> None:
        key = key_of(event.number)
        recipe, epochs = self._recipes[event.number], self._epochs[event.number]
        tags = {"sft.state": event.state, **({"sft.reason": event.reason} if event.reason else {})}
        self._outbox.put(messages.tags(key, tags))
        if event.model is not None:
            best = max(epochs, key=lambda e: e.value)
            self._log_model(key, event.model, recipe, best)
        if event.state == "COMPLETE" and event.value is not None:
            self._best = event.value if self._best is None else max(self._best, event.value)
            best_so_far = {f"best/valid/{self._objective}": self._best}
            self._outbox.put(
                messages.metrics(
                    self._outbox.ids[messages.PARENT], best_so_far, event.number, now()
                )
            )
        self._outbox.put(messages.ended(key, _STATUS[event.state], now()))
        # Only now: until it is queued, `close` has to end this run too.
        del self._recipes[event.number], self._epochs[event.number]

    def _log_model(self, key: str, folder: Path, recipe: Recipe, best: EpochEnded) -> None:
        config = model_folder.read_config(folder)
        save_manifest(self._manifest, folder / MANIFEST)
        if self._ancestors:
            (folder / ANCESTORS).write_text(json.dumps(sorted(self._ancestors)))
        png = folder.with_name("confusion.png")
        png.write_bytes(self._confusion(folder, config))
        self._outbox.put(messages.files(key, {"confusion.png": png}))
        # Of its own: by the time of delivery the user's files may be elsewhere.
        example = folder.with_name("example.png")
        example.write_bytes(self._example)
        figures = {k: v for k, v in best.metrics.items() if k.startswith("valid/")}
        self._outbox.put(
            messages.model(
                key,
                name=f"{self._manifest.name}-{recipe.depth}",
                folder=folder,
                example=example,
                values={f"best/{k}": v for k, v in figures.items()},
                params=recipe_text(recipe),
                model_tags=model_tags(self._manifest, config),
            )
        )

    def _confusion(self, folder: Path, config: model_folder.ModelConfig) -> bytes:
        found = np.load(folder.with_name(EVIDENCE))
        judging, frame = TASKS[config.task].judging, Frame.of_model(config, self._manifest)
        return confusion_png(judging.confusion(found, self._manifest.side("valid"), frame))


def recipe_text(recipe: Recipe) -> dict[str, str]:
    """The recipe as parameters of a run: `options.` and the name."""
    return {
        f"options.{name}": "" if value is None else str(value)
        for name, value in asdict(recipe).items()
    }


def model_tags(manifest: Manifest, config: model_folder.ModelConfig) -> Mapping[str, str]:
    """What a model was made of, as tags of the LoggedModel and of the registered version."""
    return {
        "sft.task": config.task,
        "sft.source": config.source,
        "sft.weights_sha256": config.weights_sha256,
        "sft.data_name": manifest.name,
        "sft.data_uri": manifest.uri,
        "sft.data_digest": manifest.digest,
    }
