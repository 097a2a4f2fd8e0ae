"""Whether images of the user's data may be mirrored: the probe is asked, not the user."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sft_mlflow.data.canvas import place
from sft_mlflow.data.manifest import Sample
from sft_mlflow.data.pixels import PixelSpec
from sft_mlflow.reuse.chain import AS_THEY_ARE, Chain, Road
from sft_mlflow.sources.folding import folded
from sft_mlflow.tasks import TASKS
from sft_mlflow.tasks.naive import compared
from sft_mlflow.training.probing import Probed, Progress
from sft_mlflow.training.trial import Material

# Mirroring is harmless where it costs the probe no more of what it knows than this part.
MIRROR_LOSS = 0.04
# So many images tell, and wait for no cut-off.
MOST_IMAGES = 500


class Verdict(NamedTuple):
    """Whether images may be mirrored, and why."""

    is_harmless: bool
    because: str


def judge(
    material: Material,
    road: Road,
    probed: Probed,
    metric: str,
    progress: Progress,
    deadline: float | None,
) -> Verdict:
    """Whether the probe is about as good on mirrored images, as it is not on digits or letters.

    road: its network has the head that was probed; deadline: when to give up, which is a no, on the
    clock of `time.monotonic`. A probe that knows nothing says nothing.
    """
    judging, frame = TASKS[material.task].judging, material.frame(road.preprocessing)
    rows = _chosen(probed.asked)
    samples = [probed.asked[row] for row in rows]
    plain = judging.evaluate(judging.subset(probed.evidence, rows), samples, frame)[metric]
    probe = compared(judging, metric, plain, samples, frame)
    if not probe.knows:
        return Verdict(False, "training images are not mirrored: the probe knows too little")
    there = of_mirrored(material, road, samples, metric, progress, deadline)
    if there is None:
        return Verdict(False, "training images are not mirrored: no time was left for the probe")
    harmless = plain - there <= MIRROR_LOSS * (plain - probe.naive)
    figures = f"{metric} {plain:.4f}, mirrored {there:.4f}, on {len(samples)} validation images"
    done = "are mirrored" if harmless else "are not mirrored"
    return Verdict(harmless, f"training images {done}: the probe has {figures}")


@torch.no_grad()
def of_mirrored(
    material: Material,
    road: Road,
    samples: Sequence[Sample],
    metric: str,
    progress: Progress,
    deadline: float | None,
) -> float | None:
    """The network's metric on the images mirrored, None where it gets late."""
    task, frame = TASKS[material.task], material.frame(road.preprocessing)
    chain = Chain(samples, road, AS_THEY_ARE, material.store, kept={0})
    normalised = road.segment(0, 0)
    whole = folded(road.network.suffix(road.network.full_depth))
    together = road.pixel_spec.together
    evidence = []
    for start in range(0, len(samples), together):
        if deadline is not None and time.monotonic() > deadline:
            progress(len(samples), len(samples))
            return None
        some = samples[start : start + together]
        sizes = [(sample.width, sample.height) for sample in some]
        pixels = chain.values(np.arange(start, start + len(some)), 0, 0)
        outputs = whole(normalised(mirrored(pixels, sizes, road.pixel_spec)))
        turned = task.answering.answers(road.network.head, outputs, sizes, frame)
        pairs = zip(turned, sizes, strict=True)
        back = [task.answering.mirrored(answer, width) for answer, (width, _) in pairs]
        evidence.append(task.judging.evidence(back, some, frame, start))
        progress(start + len(some), len(samples))
    # Trials read the same pixels.
    chain.flush()
    return task.judging.evaluate(np.concatenate(evidence), samples, frame)[metric]


def _chosen(samples: Sequence[Sample]) -> NDArray[np.intp]:
    """Rows of the samples, or of so many of them by their digests, which are as good as drawn."""
    digests = [sample.digest for sample in samples]
    return np.sort(np.argsort(digests, kind="stable")[:MOST_IMAGES])


def mirrored(pixels: Tensor, sizes: Sequence[tuple[int, int]], spec: PixelSpec) -> Tensor:
    """Each picture mirrored where it lies.

    pixels: (B, H, W, 3), as the spec says; sizes: width and height of the pictures themselves.
    """
    if spec.canvas is None:
        return pixels.flip(2)
    widths = [place(spec.canvas, *size).width for size in sizes]
    return torch.stack(
        [
            torch.cat([one[:, :width].flip(1), one[:, width:]], dim=1)
            for one, width in zip(pixels, widths, strict=True)
        ]
    )
