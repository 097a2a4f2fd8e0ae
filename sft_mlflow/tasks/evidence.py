"""Evidence of answers that come some at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from sft_mlflow.data.manifest import Sample
from sft_mlflow.tasks.base import Answer, Evidence, Frame, Judging


def gathered(
    judging: Judging, told: Iterable[tuple[Sequence[Answer], Sequence[Sample]]], frame: Frame
) -> Evidence:
    """Evidence of all answers. told: answers to some images, and those images, in their order."""
    parts = [judging.evidence([], [], frame, 0)]
    images = 0
    for answers, samples in told:
        parts.append(judging.evidence(answers, samples, frame, images))
        images += len(samples)
    return np.concatenate(parts)
