from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sft_mlflow.errors import TrialError
from sft_mlflow.sources.network import StagedNetwork
from sft_mlflow.tasks.classification import CLASSIFICATION
from sft_mlflow.training.checkpoints import Checkpoints
from sft_mlflow.training.events import Answered, EpochEnded, FitEvent, FitStarted, StepEnded
from sft_mlflow.training.fit import fit, judged
from sft_mlflow.training.probe import Probe

from .conftest import CPU, FLOAT32, FRAME, RECIPE, Digits, Fitted

Run = Callable[..., Fitted]
NewNetwork = Callable[[], StagedNetwork]
Weights = dict[str, torch.Tensor]
# Three classes and 48 images: a third, and three standard deviations of guessing.
BETTER_THAN_CHANCE = 1 / 3 + 3 * (1 / 3 * 2 / 3 / 48) ** 0.5
# Enough for a network that has seen nothing before.
LEARNING = {"depth": 18, "epochs": 8, "lr": 5e-3}


def same(one: Weights, other: Weights) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def epochs_of(fitted: Fitted) -> list[EpochEnded]:
    return [event for event in fitted.events if isinstance(event, EpochEnded)]


def test_events_come_in_order(run: Run) -> None:
    fitted = run(epochs=2)
    steps = 4
    kinds = [type(event) for event in fitted.events]
    assert kinds == [
        FitStarted,
        Answered,
        EpochEnded,
        *([StepEnded] * steps + [Answered, EpochEnded]) * 2,
    ]
    assert [epoch.epoch for epoch in epochs_of(fitted)] == [0, 1, 2]
    assert [(e.epoch, e.step) for e in fitted.events if isinstance(e, StepEnded)] == [
        (epoch, step) for epoch in (1, 2) for step in (1, 2, 3, 4)
    ]
    assert fitted.ended.reason == "finished"


def test_answers_are_told_a_few_times_and_of_the_same_first_images(
    run: Run, digits: Digits
) -> None:
    fitted = run(epochs=12, patience=99)
    told = [event for event in fitted.events if isinstance(event, Answered)]
    assert [event.epoch for event in told] == [0, 3, 6, 9, 12]
    assert all(tuple(event.samples) == digits.valid.samples for event in told)
    assert all(len(event.answers) == 4 for event in told)


def test_training_learns_and_ends_with_its_best_epoch(
    run: Run, new_network: NewNetwork, digits: Digits
) -> None:
    network = new_network()
    fitted = run(network=network, **LEARNING)
    values = [epoch.value for epoch in epochs_of(fitted)]
    assert max(values) > BETTER_THAN_CHANCE > values[0]
    assert fitted.ended.value == max(values)
    assert fitted.ended.best_epoch == values.index(max(values))
    batches = digits.batches(RECIPE)
    outputs, _ = judged(network.head, network.suffix(18), batches, CLASSIFICATION, FRAME)
    assert np.array_equal(outputs, fitted.evidence)
    found = CLASSIFICATION.judging.evaluate(outputs, batches.validated, FRAME)
    assert found["accuracy"] == fitted.ended.value
    assert not any(module.training for module in network.model.modules())


@pytest.mark.parametrize(
    ("depth", "head_start"),
    [(0, "random"), (9, "random"), (18, "random"), (9, "probe"), (18, "probe")],
)
def test_only_the_trained_stages_change(
    depth: int, head_start: str, run: Run, new_network: NewNetwork
) -> None:
    network = new_network()
    before = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
    fitted = run(network=network, depth=depth, head_start=head_start, lr=5e-3, epochs=6)
    assert fitted.ended.best_epoch > 0
    boundary = network.full_depth - depth
    frozen = set().union(*map(network.tensors_of, range(boundary)))
    changed = {n for n in before if not torch.equal(before[n], fitted.weights[n])}
    assert not changed & frozen
    assert {"fc.weight", "fc.bias"} <= changed
    buffers = {n for n in before.keys() - frozen if "running_" in n}
    assert bool(changed & buffers) == (head_start == "random" and depth > 0)


def test_the_probe_alone_takes_no_step(run: Run, new_network: NewNetwork, probe: Probe) -> None:
    network = new_network()
    probe.as_start().copy_into(network.head)
    before = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
    fitted = run(network=network, depth=0, head_start="probe", lr=None)
    assert [type(event) for event in fitted.events] == [FitStarted, Answered, EpochEnded]
    assert fitted.ended.reason == "finished"
    assert same(before, fitted.weights)


def test_an_interrupted_fit_goes_on_to_the_same_bits(
    run: Run, new_network: NewNetwork, digits: Digits, tmp_path: Path
) -> None:
    whole = run(augmentation="light")
    recipe = replace(RECIPE, augmentation="light")
    network = new_network()
    interrupted = fit(
        network,
        recipe,
        digits.batches(recipe, network),
        CLASSIFICATION,
        FRAME,
        Checkpoints(tmp_path / "again", every_seconds=0),
        FLOAT32,
        CPU,
    )
    for event in interrupted:
        # In the middle of epoch 2, which is lost.
        if isinstance(event, StepEnded) and (event.epoch, event.step) == (2, 2):
            break
    interrupted.close()
    torch.manual_seed(1234)
    network = new_network()
    resumed = run(folder=tmp_path / "again", network=network, augmentation="light")
    started = resumed.events[0]
    assert isinstance(started, FitStarted)
    assert started.resumed == 1
    assert same(whole.weights, resumed.weights)
    figures = [(epoch.epoch, epoch.value, epoch.metrics) for epoch in epochs_of(whole)]
    assert [(epoch.epoch, epoch.value, epoch.metrics) for epoch in epochs_of(resumed)] == figures
    steps = [event.epoch for event in resumed.events if isinstance(event, StepEnded)]
    assert sorted(set(steps)) == [2, 3]
    trainable = {n for n, p in network.model.named_parameters() if p.requires_grad}
    fresh = new_network()
    fresh.freeze(RECIPE.depth)
    assert trainable == {n for n, p in fresh.model.named_parameters() if p.requires_grad}


def test_a_finished_fit_that_is_started_again_takes_no_step(run: Run, tmp_path: Path) -> None:
    first = run(folder=tmp_path / "fit", epochs=1)
    again = run(folder=tmp_path / "fit", epochs=1)
    assert not [event for event in again.events if isinstance(event, StepEnded)]
    assert same(first.weights, again.weights)
    assert again.ended == first.ended


def test_the_seed_decides_the_weights(run: Run) -> None:
    def weights(seed: int) -> Weights:
        torch.manual_seed(int(torch.randint(1000, ())))
        return run(seed=seed, epochs=1, augmentation="natural").weights

    assert same(weights(1), weights(1))
    assert not same(weights(1), weights(2))


def test_training_leaves_torchs_global_generator_where_it_was(
    run: Run, new_network: NewNetwork
) -> None:
    network = new_network()
    before = torch.get_rng_state()
    moved = []

    def look(event: FitEvent) -> bool:
        moved.append(not torch.equal(torch.get_rng_state(), before))
        return False

    run(network=network, stop=look, epochs=1, augmentation="light")
    assert len(moved) == 9
    assert not any(moved)


def test_no_context_of_torch_is_open_between_two_events(run: Run) -> None:
    seen = set()

    def look(event: FitEvent) -> bool:
        seen.add((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return False

    run(stop=look, epochs=1, precision="bfloat16")
    assert seen == {(True, False)}


@pytest.mark.parametrize(("depth", "batch_size", "sharing"), [(0, 16, 1), (9, 16, 2), (0, 64, 2)])
def test_threads_share_all_but_a_small_linear_head_and_are_put_back(
    depth: int, batch_size: int, sharing: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Less than 64 images take, and more than 16.
    monkeypatch.setattr("sft_mlflow.training.fit.LITTLE_WORK", 32 * 3 * 1280)
    shared, between = set(), set()
    loss = type(CLASSIFICATION.learning).loss

    def watched(*words: object, **named: object) -> torch.Tensor:
        shared.add(torch.get_num_threads())
        return loss(*words, **named)  # type: ignore[arg-type]

    def look(event: FitEvent) -> bool:
        between.add(torch.get_num_threads())
        return False

    monkeypatch.setattr(type(CLASSIFICATION.learning), "loss", watched)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run(stop=look, epochs=1, depth=depth, batch_size=batch_size, head_start="random")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert (shared, between) == ({sharing}, {2})


def test_a_loss_that_is_not_finite_fails_the_trial_with_its_reason(
    run: Run, new_network: NewNetwork
) -> None:
    with pytest.raises(TrialError, match=r"loss became (nan|inf) at epoch \d, step \d.*--lr-max"):
        run(lr=1e12, optimizer="sgd", depth=18, epochs=5)


def test_training_stops_where_nothing_improves(run: Run) -> None:
    # No step changes anything, so no epoch is better than the start.
    fitted = run(lr=1e-30, weight_decay=0.0, depth=0, epochs=50, patience=3)
    assert [epoch.epoch for epoch in epochs_of(fitted)] == [0, 1, 2, 3]
    assert fitted.ended.reason == "early-stopped"
    assert fitted.ended.best_epoch == 0


@pytest.mark.parametrize(
    ("last", "epochs"),
    [
        (lambda event: isinstance(event, FitStarted), [0]),
        (lambda event: isinstance(event, EpochEnded) and event.epoch == 0, [0]),
        (lambda event: isinstance(event, StepEnded) and event.epoch == 1, [0]),
        (lambda event: isinstance(event, EpochEnded) and event.epoch == 1, [0, 1]),
        (lambda event: isinstance(event, StepEnded) and event.epoch == 2, [0, 1]),
    ],
    ids=["start", "epoch-0", "step-of-epoch-1", "epoch-1", "step-of-epoch-2"],
)
def test_a_stopped_fit_keeps_the_best_of_its_whole_epochs(
    last: Callable[[FitEvent], bool],
    epochs: list[int],
    run: Run,
    new_network: NewNetwork,
    digits: Digits,
) -> None:
    network = new_network()
    fitted = run(network=network, stop=last)
    assert [epoch.epoch for epoch in epochs_of(fitted)] == epochs
    assert fitted.ended.reason == "stopped"
    assert fitted.ended.value == max(epoch.value for epoch in epochs_of(fitted))
    batches = digits.batches(RECIPE)
    outputs, _ = judged(network.head, network.suffix(18), batches, CLASSIFICATION, FRAME)
    assert np.array_equal(outputs, fitted.evidence)
    found = CLASSIFICATION.judging.evaluate(outputs, batches.validated, FRAME)
    assert found["accuracy"] == fitted.ended.value
    # Only at the start is there nothing yet to stop after.
    later = [event for event in fitted.events if last(event)]
    assert later[-1] == fitted.events[-1] or isinstance(later[0], FitStarted)


def test_a_resumed_fit_can_be_stopped_in_its_replay(run: Run, tmp_path: Path) -> None:
    run(folder=tmp_path / "fit", epochs=3, stop=lambda e: getattr(e, "epoch", 0) == 2)
    resumed = run(
        folder=tmp_path / "fit",
        epochs=3,
        stop=lambda event: isinstance(event, EpochEnded) and event.epoch == 0,
    )
    assert resumed.ended.reason == "stopped"
    assert not [event for event in resumed.events if isinstance(event, StepEnded)]


def test_metrics_name_loss_learning_rate_and_the_validation_figures(run: Run) -> None:
    start, first = epochs_of(run(epochs=1))
    figures = {"valid/loss", "valid/accuracy", "valid/macro_f1", "valid/ece"}
    assert start.metrics.keys() == figures
    assert first.metrics.keys() == figures | {"train/loss", "lr"}
    assert start.value == start.metrics["valid/accuracy"]


def test_bfloat16_trains_in_float32_weights_and_learns(run: Run) -> None:
    fitted = run(precision="bfloat16", **LEARNING)
    assert fitted.ended.value > BETTER_THAN_CHANCE
    assert {t.dtype for t in fitted.weights.values() if t.is_floating_point()} == {torch.float32}


def test_sgd_lowers_the_loss_too(run: Run) -> None:
    _, first, *_, last = epochs_of(run(optimizer="sgd", lr=0.05, depth=18, epochs=6))
    assert last.metrics["train/loss"] < 0.9 * first.metrics["train/loss"]


def test_heavier_classes_are_answered_more_often(run: Run, digits: Digits) -> None:
    rare = np.flatnonzero(digits.train.targets == 2)[3:]
    kept = np.setdiff1d(np.arange(64), rare)
    few = Digits(digits.train.only(kept), digits.valid)
    answered = []
    for class_weights in (None, (1.0, 1.0, 50.0)):
        fitted = run(data=few, class_weights=class_weights, epochs=2, label_smoothing=0.0)
        assert fitted.ended.reason == "finished"
        answered.append((fitted.evidence.argmax(axis=1) == 2).sum())
    assert answered[1] > answered[0]
