"""What holds for every task: a new one is tested by being listed in TASKS, ANSWERS and FLIPPED."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import horizontal_flip

from sft_mlflow.data.loading import load_manifest
from sft_mlflow.data.manifest import Manifest, Sample
from sft_mlflow.data.pixels import shown
from sft_mlflow.data.truth import TASK_NAMES, TaskName
from sft_mlflow.options import FinetuneOptions
from sft_mlflow.sources.network import StagedNetwork, normalise
from sft_mlflow.sources.uri import resolve
from sft_mlflow.tasks import TASKS
from sft_mlflow.tasks.base import Answer, Evidence, Frame, LossSettings, Task
from sft_mlflow.tasks.bootstrap import resampled
from sft_mlflow.tasks.detection.boxes import Boxes, true_boxes
from sft_mlflow.tasks.segmentation.truth import true_mask
from sft_mlflow.training.augmentation import moved

PLAIN = LossSettings(label_smoothing=0.0, class_weights=None)
SOURCE = "torchvision://resnet18/random"
IMAGES = 6


def right_class(sample: Sample, frame: Frame) -> Answer:
    return np.eye(len(frame.classes), dtype=np.float32)[frame.classes.index(sample.label)] * 9


def right_boxes(sample: Sample, frame: Frame) -> Answer:
    return true_boxes(sample, frame.classes)


def right_mask(sample: Sample, frame: Frame) -> Answer:
    return true_mask(sample, frame.classes, frame.mask_values)


def wrong_class(sample: Sample, frame: Frame) -> Answer:
    return np.roll(right_class(sample, frame), 1)


def wrong_boxes(sample: Sample, frame: Frame) -> Answer:
    truth = true_boxes(sample, frame.classes)
    # Right places, and a class that is none of the image's.
    label = next(n for n in range(len(frame.classes)) if n not in truth.labels)
    return Boxes(truth.boxes, np.full(len(truth), label), truth.scores)


def wrong_mask(sample: Sample, frame: Frame) -> Answer:
    return (right_mask(sample, frame) + 1) % len(frame.classes)


# What a model would say that is always right, and one that is always wrong.
ANSWERS: Mapping[str, tuple[Callable[[Sample, Frame], Answer], ...]] = {
    "classification": (right_class, wrong_class),
    "detection": (right_boxes, wrong_boxes),
    "segmentation": (right_mask, wrong_mask),
}


def flipped_boxes(answer: Answer, size: tuple[int, int]) -> Answer:
    true = tv_tensors.BoundingBoxes(answer.boxes, format="XYXY", canvas_size=size[::-1])  # type: ignore[call-overload]
    return replace(answer, boxes=horizontal_flip(true).numpy())


# What would be said of the mirrored image, as torchvision moves what is true of one.
FLIPPED: Mapping[str, Callable[[Answer, tuple[int, int]], Answer]] = {
    "classification": lambda answer, size: answer,
    "detection": flipped_boxes,
    "segmentation": lambda answer, size: horizontal_flip(tv_tensors.Mask(answer)).numpy(),
}


@dataclass(frozen=True)
class Made:
    """A task, a few embedded images of it, and a network for them."""

    task: Task
    manifest: Manifest
    samples: tuple[Sample, ...]
    frame: Frame
    network: StagedNetwork

    def answers(self, *, right: bool) -> list[Answer]:
        answer = ANSWERS[self.task.name][0 if right else 1]
        return [answer(sample, self.frame) for sample in self.samples]

    def evidence(self, *, right: bool) -> Evidence:
        answers = self.answers(right=right)
        return self.task.judging.evidence(answers, self.samples, self.frame, 0)

    def outputs(self, samples: Sequence[Sample]) -> Any:
        pixels = [shown(sample.path, self.frame.pixels)[0] for sample in samples]
        values = normalise(torch.from_numpy(np.stack(pixels)), (0.5,) * 3, (0.25,) * 3)
        return self.network.model(values)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return [(sample.width, sample.height) for sample in self.samples]


@pytest.fixture(scope="module", params=TASKS)
def made(request: pytest.FixtureRequest, digits_cache: Path) -> Made:
    task = TASKS[request.param]
    manifest = load_manifest("digits", task=request.param, cache=digits_cache).manifest
    source = resolve(SOURCE)
    preprocessing = task.building.preprocessing(source, manifest.samples, 64)
    frame = Frame(manifest.classes, preprocessing.pixels, manifest.mask_values)
    torch.manual_seed(0)
    network = task.building.network(source, len(manifest.classes))
    side = manifest.side("test")
    # In the order of a folder's files the first ones would be of one class.
    return Made(task, manifest, side[:: len(side) // IMAGES][:IMAGES], frame, network)


def as_they_are(truth: Any, digest: str) -> Any:
    return truth


def test_every_task_that_data_can_be_for_is_listed_and_an_option() -> None:
    assert tuple(TASKS) == TASK_NAMES == get_args(TaskName)
    words = get_args(FinetuneOptions.model_fields["task"].annotation)
    assert set(words) == {"auto", *TASKS}
    metrics = {name for task in TASKS.values() for name in task.judging.metrics}
    assert {"auto", *metrics} == set(get_args(FinetuneOptions.model_fields["metric"].annotation))


class TestLearning:
    def test_the_bare_network_is_the_same_without_weights(self, made: Made) -> None:
        architecture = resolve(SOURCE).architecture
        bare = made.task.building.bare_network(architecture, len(made.frame.classes))
        assert bare.model.state_dict().keys() == made.network.model.state_dict().keys()
        assert bare.full_depth == made.network.full_depth

    def test_a_new_head_belongs_to_the_seed(self, made: Made) -> None:
        def head(seed: int) -> dict[str, Tensor]:
            torch.manual_seed(seed)
            new = made.task.building.network(resolve(SOURCE), len(made.frame.classes))
            return dict(new.head.state_dict())

        one, same, other = head(1), head(1), head(2)
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert not all(torch.equal(one[name], other[name]) for name in one)

    def test_its_loss_falls_as_the_head_learns_a_few_images(self, made: Made) -> None:
        learning, network = made.task.learning, made.network
        network.freeze(0)
        targets = learning.targets(made.samples, made.frame, as_they_are)
        optimizer = torch.optim.AdamW(network.head.parameters(), lr=3e-3)
        losses = []
        for _ in range(12):
            loss = learning.loss(network.head, made.outputs(made.samples), targets, PLAIN)
            assert loss.shape == ()
            assert loss.dtype == torch.float32
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.8 * losses[0]

    def test_its_loss_is_float32_for_outputs_in_bfloat16(self, made: Made) -> None:
        targets = made.task.learning.targets(made.samples[:2], made.frame, as_they_are)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = made.outputs(made.samples[:2])
        loss = made.task.learning.loss(made.network.head, outputs, targets, PLAIN)
        assert loss.dtype == torch.float32

    def test_weights_are_one_a_class_where_there_are_any(self, made: Made) -> None:
        weights = made.task.learning.class_weights(made.manifest)
        assert weights is None or (len(weights) == len(made.frame.classes) and min(weights) > 0)

    @pytest.mark.parametrize("policy", ["light", "natural"])
    def test_targets_can_be_moved(self, made: Made, policy: Any) -> None:
        move = partial(moved, policy=policy, key=(0, 1))
        targets = made.task.learning.targets(
            made.samples, made.frame, lambda truth, digest: move(truth, name=digest)
        )
        loss = made.task.learning.loss(
            made.network.head, made.outputs(made.samples), targets, PLAIN
        )
        assert torch.isfinite(loss)


class TestJudging:
    @pytest.mark.parametrize("counts", [{"a": 5, "b": 5}, {"a": 500, "b": 1}, {"a": 3, "b": 0}])
    def test_its_objective_is_one_of_its_metrics_and_has_a_reason(
        self, made: Made, counts: dict[str, int]
    ) -> None:
        metric, reason = made.task.judging.objective(counts)
        assert metric in made.task.judging.metrics
        assert reason

    def test_right_answers_have_all_that_there_is_and_wrong_ones_less(self, made: Made) -> None:
        judging = made.task.judging
        good, bad = (
            judging.evaluate(made.evidence(right=right), made.samples, made.frame)
            for right in (True, False)
        )
        assert good.keys() == bad.keys() >= set(judging.metrics)
        assert {name: good[name] for name in judging.metrics} == pytest.approx(
            dict.fromkeys(judging.metrics, 1.0)
        )
        assert all(bad[name] < 0.5 for name in judging.metrics)

    def test_what_knows_nothing_gets_less_than_all(self, made: Made) -> None:
        for metric in made.task.judging.metrics:
            naive, who = made.task.judging.naive(metric, made.samples, made.frame)
            assert 0 <= naive < 1
            assert who

    def test_evidence_of_several_batches_is_that_of_one(self, made: Made) -> None:
        judging, answers = made.task.judging, made.answers(right=True)
        parts = [
            judging.evidence(answers[some], made.samples[some], made.frame, some.start)
            for some in (slice(0, 2), slice(2, 5), slice(5, IMAGES))
        ]
        assert np.array_equal(np.concatenate(parts), made.evidence(right=True))
        nothing = judging.evidence([], [], made.frame, 0)
        assert len(np.concatenate([nothing, *parts])) == len(made.evidence(right=True))

    def test_a_subset_is_the_evidence_of_those_images(self, made: Made) -> None:
        judging, rows = made.task.judging, np.array([4, 1, 1])
        answers = made.answers(right=True)
        of_rows = judging.evidence(
            [answers[row] for row in rows], [made.samples[row] for row in rows], made.frame, 0
        )
        assert np.array_equal(judging.subset(made.evidence(right=True), rows), of_rows)

    @pytest.mark.parametrize("right", [True, False])
    def test_figures_of_a_draw_are_those_of_its_images(self, made: Made, right: bool) -> None:
        judging, evidence = made.task.judging, made.evidence(right=right)
        # Half of them wrong, where all would be.
        mixed = judging.evidence(
            [*made.answers(right=right)[: IMAGES // 2], *made.answers(right=True)[IMAGES // 2 :]],
            made.samples,
            made.frame,
            0,
        )
        draws = list(resampled(IMAGES, 3, seed=0))
        for told in (evidence, mixed):
            found = list(judging.drawn(told, made.samples, made.frame, draws))
            for rows, figures in zip(draws, found, strict=True):
                samples = [made.samples[row] for row in rows]
                again = judging.evaluate(judging.subset(told, rows), samples, made.frame)
                assert figures == pytest.approx(again, nan_ok=True)

    def test_figures_of_the_test_side_are_those_of_validation(self, made: Made) -> None:
        judging, evidence = made.task.judging, made.evidence(right=False)
        tested = judging.tested(evidence, made.samples, made.frame, seed=0)
        found = judging.evaluate(evidence, made.samples, made.frame)
        for name, interval in tested.figures.items():
            assert interval.value == pytest.approx(found[name])
            assert 0 <= interval.low <= interval.value <= interval.high <= 1
        assert [row.name for row in tested.per_class.rows] == list(made.frame.classes)
        assert all(
            len(row.values) == len(tested.per_class.columns) for row in tested.per_class.rows
        )

    def test_right_answers_are_confused_with_nothing(self, made: Made) -> None:
        judging = made.task.judging
        found = judging.confusion(made.evidence(right=True), made.samples, made.frame)
        assert found.names[: len(made.frame.classes)] == made.frame.classes
        assert found.counts.sum() == np.trace(found.counts) > 0
        wrong = judging.confusion(made.evidence(right=False), made.samples, made.frame)
        assert np.trace(wrong.counts) == 0

    def test_classes_are_compared_by_name_and_only_where_they_are(self, made: Made) -> None:
        judging = made.task.judging
        for right, wanted in ((True, 1.0), (False, 0.0)):
            found = judging.by_class(made.evidence(right=right), made.samples, made.frame)
            assert set(found) <= set(made.frame.classes)
            assert all(count > 0 for count, _ in found.values())
            assert all(value == pytest.approx(wanted) for _, value in found.values())

    def test_the_worst_images_come_first_and_none_comes_twice(self, made: Made) -> None:
        judging = made.task.judging
        mixed = made.answers(right=True)
        mixed[3] = made.answers(right=False)[3]
        evidence = judging.evidence(mixed, made.samples, made.frame, 0)
        worst, typical = judging.notable(evidence, made.samples, made.frame, 2)
        assert worst[0] == 3
        assert len(worst) <= 2
        assert not set(worst.tolist()) & set(typical.tolist())

    def test_a_drawing_is_a_picture_with_words(self, made: Made) -> None:
        for answer in (made.answers(right=True)[0], made.answers(right=False)[0]):
            jpeg, caption = made.task.judging.drawing(made.samples[0], answer, made.frame)
            assert Image.open(io.BytesIO(jpeg)).format == "JPEG"
            assert caption.said
            assert made.samples[0].path.name in caption.path


class TestAnswering:
    def test_a_mirrored_answer_is_that_to_the_mirrored_image(self, made: Made) -> None:
        answers = made.answers(right=True)
        wanted = list(map(FLIPPED[made.task.name], answers, made.sizes))
        found = [
            made.task.answering.mirrored(answer, width)
            for answer, (width, _) in zip(answers, made.sizes, strict=True)
        ]
        seen = [made.task.judging.evidence(a, made.samples, made.frame, 0) for a in (wanted, found)]
        assert np.allclose(*seen)

    def test_a_network_answers_each_image_in_its_own_pixels(self, made: Made) -> None:
        made.network.model.eval()
        with torch.no_grad():
            outputs = made.outputs(made.samples)
        answering = made.task.answering
        answers = answering.answers(made.network.head, outputs, made.sizes, made.frame)
        evidence = made.task.judging.evidence(answers, made.samples, made.frame, 0)
        found = made.task.judging.evaluate(evidence, made.samples, made.frame)
        assert all(0 <= found[name] <= 1 for name in made.task.judging.metrics)
        # The rest of a padded batch is of no image.
        fewer = answering.answers(made.network.head, outputs, made.sizes[:2], made.frame)
        assert len(fewer) == 2

    def test_rows_of_scores_are_of_their_images(self, made: Made) -> None:
        answering = made.task.answering
        answers = [*made.answers(right=True), None]
        labels = [*(sample.label for sample in made.samples), None]
        rows, columns = answering.rows(answers, labels, [*made.sizes, None], made.frame)
        wanted = answering.columns(made.frame.classes)
        assert sorted(set(rows.tolist())) == list(range(len(answers)))
        assert [column.type for column in columns] == [kind for _, kind in wanted]
        assert {len(column) for column in columns} == {len(rows)}
        # Nothing is said of an image that could not be read.
        assert all(column[-1].as_py() is None for column in columns)

    def test_what_is_served_has_its_columns_and_nothing_binary(self, made: Made) -> None:
        columns = made.task.answering.served_columns()
        row = made.task.answering.served(made.answers(right=True)[0], made.frame)
        assert list(row) == [name for name, _ in columns]
        table = pa.Table.from_pylist([row], schema=pa.schema(columns))
        assert table.num_rows == 1
        assert "binary" not in str(table.schema)
