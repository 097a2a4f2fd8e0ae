"""The manifest: samples, classes, groups, split and digest. Nothing downstream knows a format."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from sft_mlflow.data.truth import (
    MaskValues,
    TaskName,
    Truth,
    classes_in,
    identity,
    label_of,
    task_of,
)

Split = Literal["train", "valid", "test"]
# From this imbalance on, accuracy hides what small classes get.
IMBALANCED = 3.0
SPLITS: tuple[Split, ...] = get_args(Split)


def imbalance(counts: Mapping[str, int]) -> float:
    """Size of the largest class as a multiple of the smallest, which counts as at least one."""
    return max(counts.values()) / max(1, min(counts.values()))


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image on one side of the split.

    path: absolute; digest: SHA-256 of the file's bytes, in hex; group: samples that share one
    (a patient, a video) never stand on two sides; width, height: of the upright picture in pixels,
    0 where an older manifest does not say.
    """

    path: Path
    truth: Truth
    digest: str
    split: Split
    group: str | None = None
    width: int = 0
    height: int = 0

    @property
    def label(self) -> str:
        """Name of its class; of several, all of them."""
        return label_of(self.truth)


@dataclass(frozen=True)
class Manifest:
    """What a study is trained, chosen and tested on.

    samples: in reading order; classes: the index of a class is its position; mask_values: what the
    pixels of masks stand for, None where there are none.
    """

    name: str
    uri: str
    samples: tuple[Sample, ...]
    classes: tuple[str, ...]
    mask_values: MaskValues | None = None

    @property
    def task(self) -> TaskName:
        """What can be learnt from it."""
        return task_of(sample.truth for sample in self.samples)

    def side(self, split: Split) -> tuple[Sample, ...]:
        """Samples of one side of the split, in reading order."""
        return tuple(sample for sample in self.samples if sample.split == split)

    def counts(self, split: Split) -> dict[str, int]:
        """Number of samples that show each class on one side, zeros included."""
        found = Counter(name for sample in self.side(split) for name in classes_in(sample.truth))
        return {name: found[name] for name in self.classes}

    @cached_property
    def digest(self) -> str:
        """SHA-256 that changes if and only if samples, labels or split change.

        Neither the order nor the place of the files matters: a moved folder keeps its digest.
        """
        return digest_of(self.samples)


def digest_of(samples: Iterable[Sample]) -> str:
    """SHA-256 in hex over (content, truth, split) of the samples, in any order."""
    # As JSON, since a label may hold any character that would separate the fields.
    lines = sorted(json.dumps([s.digest, s.split, identity(s.truth)]) for s in samples)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
