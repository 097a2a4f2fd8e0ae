"""How well objects are found, from the boxes of all images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sft_mlflow.data.manifest import Sample
from sft_mlflow.sources.model_folder import Calibration
from sft_mlflow.tasks.base import Frame
from sft_mlflow.tasks.bootstrap import interval, resampled
from sft_mlflow.tasks.detection import matching
from sft_mlflow.tasks.detection.boxes import Boxes, objects_in, true_boxes
from sft_mlflow.tasks.detection.drawing import beside_truth
from sft_mlflow.tasks.detection.metrics import Matched, Precision
from sft_mlflow.tasks.extremes import worst_and_middle
from sft_mlflow.tasks.figures import Caption, ClassRow, ClassTable, Confusion, TestFigures

RESAMPLES = 100
BACKGROUND = "background"

Rows = NDArray[np.float64]


class BoxJudging:
    """Evidence are the boxes found, (M, 7): image, xmin, ymin, xmax, ymax, class, score."""

    metrics = ("map", "map_50")
    pictures_tell = True
    measured = ("average precision", "objects")

    def objective(self, class_counts: Mapping[str, int]) -> tuple[str, str]:
        """COCO's mean average precision."""
        del class_counts
        return "map", "it asks for the right places as well as the right objects"

    def evidence(
        self, answers: Sequence[Boxes], samples: Sequence[Sample], frame: Frame, first: int
    ) -> Rows:
        """The boxes, one row each."""
        del samples, frame
        return _rows(answers, first)

    def evaluate(self, evidence: Rows, samples: Sequence[Sample], frame: Frame) -> dict[str, float]:
        """`map`, `map_50`, `map_75`; `map_small` to `map_large` where such objects are."""
        return _figures(_matched(evidence, samples, frame).precision())

    def subset(self, evidence: Rows, rows: NDArray[np.intp]) -> Rows:
        """Their boxes, numbered anew."""
        found = _by_image(evidence, int(max(rows, default=-1)) + 1)
        return _rows([found[row] for row in rows], 0)

    def drawn(
        self,
        evidence: Rows,
        samples: Sequence[Sample],
        frame: Frame,
        draws: Iterable[NDArray[np.intp]],
    ) -> Iterator[dict[str, float]]:
        """The figures of each draw; boxes are matched once.

        By size only where such objects are, but 0 where a draw of them has no answer at all.
        """
        matched = _matched(evidence, samples, frame)
        for rows in draws:
            yield _figures(matched.precision(rows))

    def right(self, evidence: Rows, samples: Sequence[Sample], frame: Frame) -> None:
        """An image with several objects is more or less right."""
        del evidence, samples, frame

    def by_class(
        self, evidence: Rows, samples: Sequence[Sample], frame: Frame
    ) -> dict[str, tuple[int, float]]:
        """Objects and average precision of each class that has any."""
        found = _matched(evidence, samples, frame).precision().per_class
        objects = Counter(box.label for sample in samples for box in objects_in(sample))
        return {name: (objects[name], value) for name, value in found.items()}

    def naive(self, metric: str, samples: Sequence[Sample], frame: Frame) -> tuple[float, str]:
        """Nothing is found."""
        del metric, samples, frame
        return 0.0, "finding nothing"

    def confusion(self, evidence: Rows, samples: Sequence[Sample], frame: Frame) -> Confusion:
        """Boxes that are sure enough by true and found class; what only one side has is background.

        A mistake of place is two: an object that was missed, and a box where nothing is.
        """
        truth = [true_boxes(sample, frame.classes) for sample in samples]
        least = frame.calibration.least_score
        found = [one.above(least) for one in _by_image(evidence, len(samples))]
        counts = matching.confusion(found, truth, len(frame.classes))
        return Confusion((*frame.classes, BACKGROUND), counts, "boxes")

    def calibrated(self, evidence: Rows, samples: Sequence[Sample], frame: Frame) -> Calibration:
        """The score from which on most of what is there is found and most of what is found is so.

        That of the best F1 at an IoU of 0.50.
        """
        truth = [true_boxes(sample, frame.classes) for sample in samples]
        return Calibration(
            least_score=matching.best_score(_by_image(evidence, len(samples)), truth)
        )

    def tested(
        self, evidence: Rows, samples: Sequence[Sample], frame: Frame, seed: int
    ) -> TestFigures:
        """Intervals by drawing images with replacement; precision over recall by class."""
        matched = _matched(evidence, samples, frame)
        precision = matched.precision()
        figures = _figures(precision)
        draws = resampled(len(samples), RESAMPLES, seed)
        drawn = [matched.precision(rows) for rows in draws]
        counts = matched.true_boxes.sum(axis=0)
        nothing = math.nan
        return TestFigures(
            images=len(samples),
            figures={
                name: interval(figures[name], [getattr(one, name) for one in drawn])
                for name in self.metrics
            },
            further={k: v for k, v in figures.items() if k not in self.metrics},
            per_class=ClassTable(
                "objects",
                ("AP at 0.50", "AP"),
                tuple(
                    ClassRow(
                        name,
                        int(counts[number]),
                        (
                            precision.per_class_50.get(name, nothing),
                            precision.per_class.get(name, nothing),
                        ),
                    )
                    for number, name in enumerate(frame.classes)
                ),
            ),
            confusion=self.confusion(evidence, samples, frame),
            curves=precision.curves,
        )

    def notable(
        self, evidence: Rows, samples: Sequence[Sample], frame: Frame, most: int
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The images with the least share of right boxes, and those about the median."""
        least = frame.calibration.least_score
        shares = [
            matching.share_right(one.above(least), true_boxes(sample, frame.classes))
            for one, sample in zip(_by_image(evidence, len(samples)), samples, strict=True)
        ]
        return worst_and_middle(shares, most)

    def drawing(self, sample: Sample, answer: Boxes, frame: Frame) -> tuple[bytes, Caption]:
        """The image with the true boxes and with those found beside it."""
        truth = true_boxes(sample, frame.classes)
        found = answer.above(frame.calibration.least_score)
        right = matching.share_right(found, truth)
        return beside_truth(sample.path, truth, found, frame.classes), Caption(
            path=sample.path.name,
            said=f"{len(found)} found, F1 {right:.3f}",
            truth=f"{len(truth)} objects",
            wrong=False,
        )

    def of_scores(
        self, scored: Iterable[pa.RecordBatch], classes: Sequence[str]
    ) -> tuple[int, int, dict[str, float]] | None:
        """Inputs of scoring have no true boxes."""
        del scored, classes
        return None


def _matched(evidence: Rows, samples: Sequence[Sample], frame: Frame) -> Matched:
    truth = [true_boxes(sample, frame.classes) for sample in samples]
    return Matched.of(_by_image(evidence, len(samples)), truth, frame.classes)


def _figures(found: Precision) -> dict[str, float]:
    """Its figures by name, without those that are of no objects."""
    named = {
        "map": found.map,
        "map_50": found.map_50,
        "map_75": found.map_75,
        "map_small": found.map_small,
        "map_medium": found.map_medium,
        "map_large": found.map_large,
    }
    # The objective has to be a number, on a side without objects too.
    return {
        name: 0.0 if math.isnan(value) else value
        for name, value in named.items()
        if not math.isnan(value) or name in BoxJudging.metrics
    }


def _rows(answers: Sequence[Boxes], first: int) -> Rows:
    parts = [
        np.column_stack([np.full(len(one), first + n), one.boxes, one.labels, one.scores])
        for n, one in enumerate(answers)
    ]
    return np.concatenate([np.empty((0, 7)), *parts])


def _by_image(evidence: Rows, images: int) -> list[Boxes]:
    ends = np.searchsorted(evidence[:, 0], np.arange(images + 1))
    parts = [evidence[begin:end] for begin, end in pairwise(ends)]
    return [Boxes(p[:, 1:5], p[:, 5].astype(np.int64), p[:, 6]) for p in parts]
