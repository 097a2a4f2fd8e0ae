"""How well masks are found, from counts of pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sft_mlflow.data.manifest import Sample
from sft_mlflow.sources.model_folder import Calibration
from sft_mlflow.tasks.base import Frame
from sft_mlflow.tasks.bootstrap import interval, resampled
from sft_mlflow.tasks.extremes import worst_and_middle
from sft_mlflow.tasks.figures import Caption, ClassRow, ClassTable, Confusion, TestFigures
from sft_mlflow.tasks.segmentation import metrics
from sft_mlflow.tasks.segmentation.drawing import beside_truth
from sft_mlflow.tasks.segmentation.metrics import Counts
from sft_mlflow.tasks.segmentation.truth import true_mask, true_pixels

RESAMPLES = 500


class MaskJudging:
    """Evidence are counts of pixels (N, classes, classes): true class, predicted class."""

    metrics = ("miou", "pixel_accuracy")
    pictures_tell = True
    measured = ("IoU", "pixels")

    def objective(self, class_counts: Mapping[str, int]) -> tuple[str, str]:
        """The mean IoU."""
        del class_counts
        return "miou", "it counts small classes like large ones"

    def evidence(
        self,
        answers: Sequence[NDArray[np.uint8]],
        samples: Sequence[Sample],
        frame: Frame,
        first: int,
    ) -> Counts:
        """The counts, one matrix an image."""
        del first
        classes = len(frame.classes)
        return np.array(
            [
                metrics.counted(
                    answer, true_mask(sample, frame.classes, frame.mask_values), classes
                )
                for answer, sample in zip(answers, samples, strict=True)
            ],
            # More than any picture has; half the memory, and half the size of checkpoints.
            np.int32,
        ).reshape(-1, classes, classes)

    def evaluate(
        self, evidence: Counts, samples: Sequence[Sample], frame: Frame
    ) -> dict[str, float]:
        """`miou` and `pixel_accuracy`, over all pixels of all images."""
        del samples, frame
        return metrics.summary(evidence.sum(0))

    def subset(self, evidence: Counts, rows: NDArray[np.intp]) -> Counts:
        """Their counts."""
        return evidence[rows]

    def drawn(
        self,
        evidence: Counts,
        samples: Sequence[Sample],
        frame: Frame,
        draws: Iterable[NDArray[np.intp]],
    ) -> Iterator[dict[str, float]]:
        """The figures of each draw."""
        del samples, frame
        return (metrics.summary(evidence[rows].sum(0)) for rows in draws)

    def right(self, evidence: Counts, samples: Sequence[Sample], frame: Frame) -> None:
        """A mask is more or less right."""
        del evidence, samples, frame

    def by_class(
        self, evidence: Counts, samples: Sequence[Sample], frame: Frame
    ) -> dict[str, tuple[int, float]]:
        """True pixels and IoU of each class that has any."""
        del samples
        rows = _by_class(evidence.sum(0), frame).rows
        return {row.name: (row.count, row.lead) for row in rows if row.count}

    def naive(self, metric: str, samples: Sequence[Sample], frame: Frame) -> tuple[float, str]:
        """The class of most pixels everywhere."""
        counts = true_pixels(samples, frame.classes, frame.mask_values)
        share = float(counts.max() / max(1, counts.sum()))
        classes = max(1, int(np.count_nonzero(counts)))
        value = share if metric == "pixel_accuracy" else share / classes
        return value, f"{frame.classes[int(counts.argmax())]!r} everywhere"

    def confusion(self, evidence: Counts, samples: Sequence[Sample], frame: Frame) -> Confusion:
        """Pixels by true and predicted class."""
        del samples
        return Confusion(frame.classes, evidence.sum(0), "pixels")

    def calibrated(self, evidence: Counts, samples: Sequence[Sample], frame: Frame) -> Calibration:
        """Nothing is: masks have no probabilities."""
        del evidence, samples, frame
        return Calibration()

    def tested(
        self, evidence: Counts, samples: Sequence[Sample], frame: Frame, seed: int
    ) -> TestFigures:
        """Intervals by drawing images with replacement; IoU, precision and recall by class."""
        counts = evidence.sum(0)
        figures = metrics.summary(counts)
        draws = resampled(len(samples), RESAMPLES, seed)
        drawn = list(self.drawn(evidence, samples, frame, draws))
        return TestFigures(
            images=len(samples),
            figures={
                name: interval(figures[name], [one[name] for one in drawn]) for name in self.metrics
            },
            per_class=_by_class(counts, frame),
            confusion=self.confusion(evidence, samples, frame),
        )

    def notable(
        self, evidence: Counts, samples: Sequence[Sample], frame: Frame, most: int
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The images of the least mean IoU, and those about the median."""
        del samples, frame
        return worst_and_middle([metrics.summary(counts)["miou"] for counts in evidence], most)

    def drawing(
        self, sample: Sample, answer: NDArray[np.uint8], frame: Frame
    ) -> tuple[bytes, Caption]:
        """The image with the true mask and with the predicted one beside it."""
        truth = true_mask(sample, frame.classes, frame.mask_values)
        counts = metrics.counted(answer, truth, len(frame.classes))
        found = metrics.summary(counts)
        return beside_truth(sample.path, truth, answer, frame.classes), Caption(
            path=sample.path.name,
            said=f"mean IoU {found['miou']:.3f}",
            truth=", ".join(metrics.per_class(counts, frame.classes)),
            wrong=False,
        )

    def of_scores(
        self, scored: Iterable[pa.RecordBatch], classes: Sequence[str]
    ) -> tuple[int, int, dict[str, float]] | None:
        """Inputs of scoring have no true masks."""
        del scored, classes
        return None


def _by_class(counts: Counts, frame: Frame) -> ClassTable:
    both, true, said = counts.diagonal(), counts.sum(1), counts.sum(0)
    unions = metrics.intersections_over_unions(counts)
    rows = tuple(
        ClassRow(
            name,
            int(true[number]),
            (
                float(both[number] / said[number]) if said[number] else float("nan"),
                float(both[number] / true[number]) if true[number] else float("nan"),
                float(unions[number]),
            ),
        )
        for number, name in enumerate(frame.classes)
    )
    return ClassTable("pixels", ("precision", "recall", "IoU"), rows)
