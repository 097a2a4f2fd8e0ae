from __future__ import annotations

from pathlib import Path

import numpy as np

from sft_mlflow.data.manifest import Sample
from sft_mlflow.training.probing import at_most


def made(counts: dict[int, int]) -> tuple[Sample, ...]:
    targets = np.repeat(list(counts), list(counts.values())).astype(np.int64)
    digests = np.random.default_rng(0).permutation(len(targets))
    return tuple(
        Sample(Path(f"/{number}.png"), str(target), f"{digest:064x}", "train")
        for number, (target, digest) in enumerate(zip(targets, digests, strict=True))
    )


def test_few_images_are_all_taken() -> None:
    images = made({0: 30, 1: 20})
    assert at_most(50, images) is images


def test_of_many_each_class_keeps_its_share_and_none_is_lost() -> None:
    images = at_most(100, made({0: 800, 1: 199, 2: 1}))
    labels = [sample.label for sample in images]
    assert np.unique(labels, return_counts=True)[1].tolist() == [80, 20, 1]


def test_which_images_are_taken_does_not_depend_on_their_order() -> None:
    images = made({0: 80, 1: 40})
    assert set(at_most(30, images)) == set(at_most(30, images[::-1]))
