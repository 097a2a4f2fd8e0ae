from __future__ import annotations

from pathlib import Path

import numpy as np

from sft_mlflow.data.manifest import Sample
from sft_mlflow.reuse.chain import Images
from sft_mlflow.training.prepare import at_most


def made(counts: dict[int, int]) -> Images:
    targets = np.repeat(list(counts), list(counts.values())).astype(np.int64)
    digests = np.random.default_rng(0).permutation(len(targets))
    samples = tuple(
        Sample(Path(f"/{number}.png"), str(target), f"{digest:064x}", "train")
        for number, (target, digest) in enumerate(zip(targets, digests, strict=True))
    )
    return Images(samples, targets)


def test_few_images_are_all_taken() -> None:
    images = made({0: 30, 1: 20})
    assert at_most(50, images) is images


def test_of_many_each_class_keeps_its_share_and_none_is_lost() -> None:
    images = at_most(100, made({0: 800, 1: 199, 2: 1}))
    assert np.unique(images.targets, return_counts=True)[1].tolist() == [80, 20, 1]
    assert [int(sample.label) for sample in images.samples] == images.targets.tolist()


def test_which_images_are_taken_does_not_depend_on_their_order() -> None:
    images = made({0: 80, 1: 40})
    turned = Images(images.samples[::-1], images.targets[::-1])
    assert set(at_most(30, images).samples) == set(at_most(30, turned).samples)
