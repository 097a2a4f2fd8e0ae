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
    (a patient, a video) never stand on two sides.
    """

    path: Path
    label: str
    digest: str
    split: Split
    group: str | None = None


@dataclass(frozen=True)
class Manifest:
    """What a study is trained, chosen and tested on.

    samples: in reading order; classes: sorted, the index of a class is its position.
    """

    name: str
    uri: str
    samples: tuple[Sample, ...]
    classes: tuple[str, ...]

    def side(self, split: Split) -> tuple[Sample, ...]:
        """Samples of one side of the split, in reading order."""
        return tuple(sample for sample in self.samples if sample.split == split)

    def counts(self, split: Split) -> dict[str, int]:
        """Number of samples of each class on one side, zeros included."""
        found = Counter(sample.label for sample in self.side(split))
        return {name: found[name] for name in self.classes}

    @cached_property
    def digest(self) -> str:
        """SHA-256 that changes if and only if samples, labels or split change.

        Neither the order nor the place of the files matters: a moved folder keeps its digest.
        """
        return digest_of(self.samples)


def digest_of(samples: Iterable[Sample]) -> str:
    """SHA-256 in hex over (content, label, split) of the samples, in any order."""
    # As JSON, since a label may hold any character that would separate the fields.
    lines = sorted(json.dumps([s.digest, s.split, s.label]) for s in samples)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
