"""The loop.

    freeze all but the last stages
    go on from the checkpoint, if there is one; else validate what the head starts from
    for every epoch:
        for every batch: mixup, loss, gradient, clip, step, average of the weights
        validate the average, keep a checkpoint
        stop early where nothing improves
    load the best epoch

It is a generator of events and knows no MLflow, no Optuna and no screen. Whoever consumes it stops
it, to prune or to keep a budget, by sending True in answer to an event.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch.fx
from torch import Tensor, nn

from sft_mlflow.data.manifest import Sample
from sft_mlflow.errors import TrialError
from sft_mlflow.sources.folding import folded
from sft_mlflow.sources.network import StagedNetwork
from sft_mlflow.tasks.base import Answer, Evidence, Frame, LossSettings, Task
from sft_mlflow.tasks.evidence import gathered
from sft_mlflow.training import mixup, optimisers
from sft_mlflow.training.averaging import Average, copies, copy
from sft_mlflow.training.batches import Batches
from sft_mlflow.training.checkpoints import Checkpoint, Checkpoints
from sft_mlflow.training.events import (
    Answered,
    EpochEnded,
    FitEnded,
    FitEvent,
    FitReason,
    FitStarted,
    StepEnded,
)
from sft_mlflow.training.precision import Arithmetic
from sft_mlflow.training.randomness import keyed
from sft_mlflow.training.recipe import Recipe
from sft_mlflow.training.threads import one_thread

# Whose answers are told while it learns, and about how often in a fit.
SHOWN_IMAGES, SHOWN_EPOCHS = 4, 5
# Multiplications of a step that one thread does sooner than it could share them.
LITTLE_WORK = 10**7


@dataclass(frozen=True)
class Fitted:
    """What a fit ended in. evidence: of the best epoch's answers to the validation side."""

    ended: FitEnded
    evidence: Evidence


def fit(
    network: StagedNetwork,
    recipe: Recipe,
    batches: Batches,
    task: Task,
    frame: Frame,
    checkpoints: Checkpoints,
    arithmetic: Arithmetic,
    device: torch.device,
    start: Evidence | None = None,
) -> Generator[FitEvent, bool | None, Fitted]:
    """Events of the training of the network's last `recipe.depth` stages and its head.

    network: on the device; frame: what its answers are about; checkpoints: from which an
    interrupted fit goes on; start: evidence of the answers to the validation side before the first
    epoch, where it is known. At the end the network is in
    eval mode with its best weights, which are averages over the steps before.
    Raises TrialError where the loss is not finite.
    """
    network.freeze(recipe.depth, statistics=recipe.batch_statistics)
    suffix = network.suffix(recipe.depth)
    trained = _trained_tensors(network, recipe.depth)
    stages = network.parameters_by_stage(recipe.depth)
    parameters = [parameter for stage in stages for parameter in stage]
    steps = batches.steps
    # A probe has no learning rate, and no epochs that would use one.
    optimizer = optimisers.optimiser(stages, recipe, recipe.lr or 0.0)
    schedule = optimisers.schedule(optimizer, steps * recipe.epochs, recipe.warmup)
    settings = LossSettings(
        recipe.label_smoothing,
        None if recipe.class_weights is None else torch.tensor(recipe.class_weights).to(device),
    )
    epochs = 0 if recipe.is_probe else recipe.epochs
    learning = task.learning
    # A small linear layer alone is too little for threads to share.
    trainable = sum(parameter.numel() for parameter in parameters)
    small = recipe.batch_size * trainable < LITTLE_WORK
    on_threads = one_thread if recipe.depth == 0 and learning.is_linear and small else nullcontext

    history: list[EpochEnded] = []
    best: Mapping[str, Tensor] = {}
    best_evidence: Evidence = np.empty(0)
    saved = checkpoints.load()
    if saved is not None:
        copy(saved.tensors, trained)
        optimizer.load_state_dict(dict(saved.optimizer))
        schedule.load_state_dict(dict(saved.schedule))
        history, best = list(saved.history), saved.best
        best_evidence = saved.evidence.numpy()
    average = Average(
        trained, recipe.averaging * steps * recipe.epochs, updates=max(0, len(history) - 1) * steps
    )
    if saved is not None:
        copy(saved.average, average.values)
    stopped = yield FitStarted(
        epochs=epochs,
        steps=steps,
        trainable=trainable,
        resumed=max(0, len(history) - 1),
    )
    # The epochs of an interrupted attempt once more.
    for earlier in tuple(history):
        stopped = (yield earlier) or stopped

    for epoch in range(len(history), epochs + 1):
        # Even what is stopped at once is as good as what it starts from: epoch 0 is validated.
        if history and (stopped or _is_early(history, recipe.patience)):
            break
        begun = time.perf_counter()
        losses = []
        for step, batch in enumerate(batches.training(epoch) if epoch else (), start=1):
            with on_threads(), keyed(recipe.seed, "step", epoch, step):
                mix = mixup.draw(recipe.mixup, len(batch.values[0]), device)
                with arithmetic.autocast():
                    outputs = suffix(*mix.blend(batch.values))
                loss_of = partial(learning.loss, network.head, outputs, settings=settings)
                loss = mix.loss(loss_of, batch.targets)
                loss.backward()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise TrialError(
                    f"the loss became {losses[-1]} at epoch {epoch}, step {step}, with learning "
                    f"rate {recipe.lr:g}. Lower it (--lr, --lr-max)."
                )
            with one_thread():
                nn.utils.clip_grad_norm_(parameters, recipe.clip, foreach=True)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                average.update()
            stopped = yield StepEnded(epoch, step, steps)
            if stopped:
                break
        if history and stopped:
            break
        if epoch == 0 and start is not None:
            evidence = start
        else:
            network.model.eval()
            with average.applied():
                evidence, first = judged(network.head, suffix, batches, task, frame)
            network.freeze(recipe.depth, statistics=recipe.batch_statistics)
            if epoch % math.ceil(max(1, epochs) / SHOWN_EPOCHS) == 0:
                told = Answered(epoch, batches.validated, evidence, first)
                stopped = (yield told) or stopped
        found = task.judging.evaluate(evidence, batches.validated, frame)
        metrics = {f"valid/{name}": value for name, value in found.items()}
        if losses:
            metrics["train/loss"] = float(np.mean(losses))
            metrics["lr"] = float(schedule.get_last_lr()[0])
        ended = EpochEnded(
            epoch=epoch,
            value=found[recipe.metric],
            metrics=metrics,
            seconds=time.perf_counter() - begun,
            timestamp=time.time_ns() // 1_000_000,
        )
        if all(ended.value > earlier.value for earlier in history):
            best, best_evidence = copies(average.values), evidence
        history.append(ended)
        checkpoints.keep(
            Checkpoint(
                trained,
                average.values,
                best,
                torch.from_numpy(best_evidence),
                optimizer.state_dict(),
                schedule.state_dict(),
                tuple(history),
            )
        )
        stopped = (yield ended) or stopped

    copy(best, trained)
    network.model.eval()
    top = max(history, key=lambda e: e.value)
    reason: FitReason = "finished" if len(history) > epochs else "early-stopped"
    return Fitted(FitEnded("stopped" if stopped else reason, top.epoch, top.value), best_evidence)


@torch.no_grad()
def judged(
    head: nn.Module, suffix: torch.fx.GraphModule, batches: Batches, task: Task, frame: Frame
) -> tuple[Evidence, list[Answer]]:
    """Evidence of the answers to the validation side, and the first of them themselves.

    In float32, as the model will be used. suffix: in eval mode, with that head at its end.
    """
    network = folded(suffix)
    first: list[Answer] = []

    def told() -> Iterator[tuple[list[Answer], Sequence[Sample]]]:
        for shown in batches.validation():
            sizes = [(sample.width, sample.height) for sample in shown.samples]
            answers = task.answering.answers(head, network(*shown.values), sizes, frame)
            first.extend(answers[: SHOWN_IMAGES - len(first)])
            yield answers, shown.samples

    return gathered(task.judging, told(), frame), first


def _is_early(history: list[EpochEnded], patience: int) -> bool:
    best = max(history, key=lambda e: e.value)
    return history[-1].epoch - best.epoch >= patience


def _trained_tensors(network: StagedNetwork, depth: int) -> dict[str, Tensor]:
    first = network.full_depth - depth
    state = network.model.state_dict()
    names = set().union(*map(network.tensors_of, range(first, network.full_depth + 1)))
    return {name: state[name] for name in sorted(names & state.keys())}
