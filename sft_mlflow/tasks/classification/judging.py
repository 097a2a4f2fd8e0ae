"""How well classes are told, from the logits of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sft_mlflow.data.manifest import IMBALANCED, Sample, imbalance
from sft_mlflow.sources.model_folder import Calibration
from sft_mlflow.tasks.base import Frame
from sft_mlflow.tasks.classification import calibration, metrics
from sft_mlflow.tasks.classification.answering import probability_column
from sft_mlflow.tasks.classification.learning import indices
from sft_mlflow.tasks.figures import (
    Caption,
    ClassTable,
    Confusion,
    Heading,
    Interval,
    Reliability,
    TestFigures,
)
from sft_mlflow.tasks.pictures import thumbnail

Logits = NDArray[np.floating]

_WORST = Heading("Worst mistakes", "What the model got wrong with the most confidence.")
_TYPICAL = Heading("Typical hits", "Right answers on test images.")


class ClassJudging:
    """Evidence are logits (N, classes)."""

    metrics = ("accuracy", "macro_f1")
    pictures_tell = False
    measured = ("recall", "images")

    def objective(self, class_counts: Mapping[str, int]) -> tuple[str, str]:
        """Accuracy, or macro F1 where the classes are imbalanced."""
        ratio = imbalance(class_counts)
        if ratio >= IMBALANCED:
            return "macro_f1", f"the largest class has {ratio:.1f}x the smallest"
        return "accuracy", "the classes are balanced"

    def evidence(
        self, answers: Sequence[Logits], samples: Sequence[Sample], frame: Frame, first: int
    ) -> Logits:
        """The logits, one row an image."""
        del samples, first
        return np.stack(answers) if answers else np.empty((0, len(frame.classes)), np.float32)

    def evaluate(
        self, evidence: Logits, samples: Sequence[Sample], frame: Frame
    ) -> dict[str, float]:
        """`loss`, `accuracy`, `macro_f1` and `ece`."""
        return figures_of(evidence, indices(samples, frame.classes))

    def subset(self, evidence: Logits, rows: NDArray[np.intp]) -> Logits:
        """Their rows."""
        return evidence[rows]

    def drawn(
        self,
        evidence: Logits,
        samples: Sequence[Sample],
        frame: Frame,
        draws: Iterable[NDArray[np.intp]],
    ) -> Iterator[dict[str, float]]:
        """The figures of each draw."""
        targets = indices(samples, frame.classes)
        return (figures_of(evidence[rows], targets[rows]) for rows in draws)

    def right(self, evidence: Logits, samples: Sequence[Sample], frame: Frame) -> NDArray[np.bool_]:
        """Whether the most probable class is the true one."""
        found: NDArray[np.bool_] = evidence.argmax(axis=1) == indices(samples, frame.classes)
        return found

    def by_class(
        self, evidence: Logits, samples: Sequence[Sample], frame: Frame
    ) -> dict[str, tuple[int, float]]:
        """Images and recall of each class."""
        right = self.right(evidence, samples, frame)
        labels = np.array([sample.label for sample in samples])
        return {
            str(name): (int(of_class.sum()), float(right[of_class].mean()))
            for name in np.unique(labels)
            for of_class in (labels == name,)
        }

    def naive(self, metric: str, samples: Sequence[Sample], frame: Frame) -> tuple[float, str]:
        """The most frequent class, whatever is shown."""
        del frame
        counts = Counter(sample.label for sample in samples)
        name, most = counts.most_common(1)[0]
        share = most / len(samples)
        # F1 of the one class that is ever answered, averaged with the zeros of the others.
        value = share if metric == "accuracy" else 2 * share / (1 + share) / len(counts)
        return value, f"always answering {name!r}"

    def confusion(self, evidence: Logits, samples: Sequence[Sample], frame: Frame) -> Confusion:
        """Images by true and most probable class."""
        truth = indices(samples, frame.classes)
        counts = metrics.confusion(calibration.softmax(evidence), truth, frame.classes)
        return Confusion(frame.classes, counts, "images")

    def calibrated(self, evidence: Logits, samples: Sequence[Sample], frame: Frame) -> Calibration:
        """The temperature."""
        targets = indices(samples, frame.classes)
        return Calibration(temperature=calibration.fit_temperature(evidence, targets))

    def tested(
        self, evidence: Logits, samples: Sequence[Sample], frame: Frame, seed: int
    ) -> TestFigures:
        """Wilson's interval of the accuracy, bootstrap of macro F1; calibration before and after.

        The logits are those that were divided by the frame's temperature.
        """
        truth = indices(samples, frame.classes)
        found = calibration.softmax(evidence)
        before = calibration.softmax(evidence * frame.calibration.temperature)
        return TestFigures(
            images=len(samples),
            figures={
                "accuracy": Interval(
                    metrics.accuracy(found, truth), *metrics.accuracy_interval(found, truth)
                ),
                "macro_f1": Interval(
                    metrics.macro_f1(found, truth),
                    *metrics.bootstrap_interval(metrics.macro_f1, found, truth, seed=seed),
                ),
            },
            per_class=ClassTable(
                "images",
                ("precision", "recall", "F1"),
                metrics.per_class(found, truth, frame.classes),
            ),
            confusion=self.confusion(evidence, samples, frame),
            calibration=Reliability(
                temperature=frame.calibration.temperature,
                ece_before=metrics.expected_calibration_error(before, truth),
                ece_after=metrics.expected_calibration_error(found, truth),
                before=metrics.reliability(before, truth),
                after=metrics.reliability(found, truth),
            ),
            worst_are=_WORST,
            typical_are=_TYPICAL,
            wide_pictures=False,
        )

    def notable(
        self, evidence: Logits, samples: Sequence[Sample], frame: Frame, most: int
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The mistakes that the model was most sure of, and for each class a typical hit."""
        truth = indices(samples, frame.classes)
        found = calibration.softmax(evidence)
        predicted, sure = found.argmax(axis=1), found.max(axis=1)
        wrong = np.flatnonzero(predicted != truth)
        typical = []
        for label in range(len(frame.classes)):
            hits = np.flatnonzero((predicted == truth) & (truth == label))
            if len(hits):
                # The median, since the surest hit is rarely what the class looks like.
                typical.append(hits[np.argsort(sure[hits])][len(hits) // 2])
        return wrong[np.argsort(-sure[wrong])][:most], np.array(typical[:most], np.intp)

    def drawing(self, sample: Sample, answer: Logits, frame: Frame) -> tuple[bytes, Caption]:
        """The image, its class and the class that the model named, with their probabilities."""
        found = calibration.softmax(answer[None])[0]
        said = int(found.argmax())
        truth = frame.classes.index(sample.label)
        return thumbnail(sample.path), Caption(
            path=f"{sample.path.parent.name}/{sample.path.name}",
            said=f"{frame.classes[said]} {found[said]:.4f}",
            truth=f"{sample.label} {found[truth]:.4f}",
            wrong=said != truth,
        )

    def of_scores(
        self, scored: Iterable[pa.RecordBatch], classes: Sequence[str]
    ) -> tuple[int, int, dict[str, float]] | None:
        """Accuracy, macro F1 and ECE; takes 24 bytes of memory an image."""
        index = {name: number for number, name in enumerate(classes)}
        parts = []
        unknown = 0
        for batch in scored:
            judged = batch.select(["label", *map(probability_column, classes)]).drop_null()
            targets = np.array([index.get(n, -1) for n in judged["label"].to_pylist()], np.int64)
            known = targets >= 0
            unknown += int((~known).sum())
            if known.any():
                columns = [judged[probability_column(name)].to_numpy() for name in classes]
                found = np.column_stack(columns)[known]
                parts.append((found.argmax(axis=1), found.max(axis=1), targets[known]))
        if not parts:
            return None
        predicted, confidence, truth = map(np.concatenate, zip(*parts, strict=True))
        figures = metrics.summary_of_answers(predicted, confidence, truth)
        return len(truth), unknown, figures


def figures_of(logits: Logits, targets: NDArray[np.int64]) -> dict[str, float]:
    """`loss`, `accuracy`, `macro_f1` and `ece` of logits (N, classes) against (N,)."""
    probabilities = calibration.softmax(logits)
    return {
        "loss": metrics.negative_log_likelihood(probabilities, targets),
        **metrics.summary(probabilities, targets),
    }
