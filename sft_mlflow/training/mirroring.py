"""Whether images of the user's data may be mirrored: the probe is asked, not the user."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from sft_mlflow.data.canvas import place
from sft_mlflow.data.manifest import Sample
from sft_mlflow.data.pixels import PixelSpec
from sft_mlflow.reuse.chain import AS_THEY_ARE, Chain, Road
from sft_mlflow.sources.folding import folded
from sft_mlflow.tasks import TASKS
from sft_mlflow.tasks.base import Answer
from sft_mlflow.tasks.evidence import gathered
from sft_mlflow.training.head_start import HeadStart
from sft_mlflow.training.probing import PROBE_IMAGES, Probed, at_most
from sft_mlflow.training.trial import Material

# Mirrored validation images may cost the probe this part of its metric, and mirroring is harmless.
MIRROR_LOSS = 0.04


def is_harmless(material: Material, road: Road, probed: Probed, metric: str) -> bool:
    """Whether the probe is about as good on mirrored images, as it is not on digits or letters.

    The road's network has the probe's head from then on.
    """
    value = value_when_mirrored(material, road, probed.head, metric)
    # A probe that knows nothing says nothing.
    return value > (1 - MIRROR_LOSS) * probed.metrics[metric]


@torch.no_grad()
def value_when_mirrored(material: Material, road: Road, head: HeadStart, metric: str) -> float:
    """The metric of that head's answers to the mirrored images of the validation side."""
    network, task, frame = road.network, TASKS[material.task], material.frame(road.preprocessing)
    head.copy_into(network.head)
    samples = at_most(PROBE_IMAGES, material.manifest.side("valid"))
    chain = Chain(samples, road, AS_THEY_ARE, material.store, kept={0})
    normalised = road.segment(0, 0)
    whole = folded(network.suffix(network.full_depth))
    together = road.pixel_spec.together

    def told() -> Iterator[tuple[list[Answer], Sequence[Sample]]]:
        for start in range(0, len(samples), together):
            some = samples[start : start + together]
            sizes = [(sample.width, sample.height) for sample in some]
            pixels = chain.values(np.arange(start, start + len(some)), 0, 0)
            outputs = whole(normalised(mirrored(pixels, sizes, road.pixel_spec)))
            answers = task.answering.answers(network.head, outputs, sizes, frame)
            pairs = zip(answers, sizes, strict=True)
            yield [task.answering.mirrored(answer, width) for answer, (width, _) in pairs], some

    return task.judging.evaluate(gathered(task.judging, told(), frame), samples, frame)[metric]


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
