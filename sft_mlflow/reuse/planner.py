"""Where on the road a trial starts: the cheapest point, by what this machine was measured to do.

Every choice gives the same batches; only the time differs.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sft_mlflow.data.manifest import Sample
from sft_mlflow.reuse.chain import Chain, Road, Views
from sft_mlflow.reuse.store import Store, keys_of
from sft_mlflow.training.augmentation import augment

SAMPLE_IMAGES = 16
REPEATS = 3
MEASURED_BYTES = 8 * 2**20
# Among which the price of putting something into the store is divided.
TRIALS_SERVED = 2


@dataclass(frozen=True)
class Prices:
    """What one image costs on this machine.

    decode, change, normalise: seconds from file to pixels, for a random change of pixels, and for
    what a network that starts from pixels is given; stages: seconds of each stage's forward pass,
    the first from pixels; nbytes: bytes of what is kept for an image to start from each point;
    read, write: seconds a byte of the store.
    """

    decode: float
    change: float
    normalise: float
    stages: tuple[float, ...]
    nbytes: tuple[int, ...]
    read: float
    write: float

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Prices:
        """The value whose `dataclasses.asdict` went through JSON."""
        return cls(
            **{**values, "stages": tuple(values["stages"]), "nbytes": tuple(values["nbytes"])}
        )

    def forward(self, begin: int, end: int) -> float:
        """Seconds from one point to the same or a later one."""
        return sum(self.stages[begin:end]) if end else self.normalise

    def reading(self, point: int) -> float:
        """Seconds to read a row at a point."""
        return self.read * self.nbytes[point]

    def writing(self, point: int) -> float:
        """Seconds to write a row at a point."""
        return self.write * self.nbytes[point]


@dataclass(frozen=True)
class Need:
    """What a trial asks of one side of the split.

    point: where its trained part begins; images: on the side; passes: over all of them; views: the
    numbers of those that the passes take in turn.
    """

    point: int
    images: int
    passes: int
    views: Sequence[int]

    @property
    def changed(self) -> bool:
        """Whether its views are random changes."""
        return any(self.views)


@dataclass(frozen=True)
class Choice:
    """Where values are read from.

    start: the kept point; below: the point whose rows are all there already, from which those that
    `start` lacks are made; seconds: predicted, for all passes of the trial; keeps_pixels: whether
    there is room for them too.
    """

    start: int
    below: int
    seconds: float
    keeps_pixels: bool = True


def measure(road: Road, samples: Sequence[Sample], views: Views, scratch: Path) -> Prices:
    """Prices on this machine, the median of a few turns with a few of the images.

    scratch: a folder on the disk of the store, for rows that are written and read for measuring.
    """
    few = np.arange(min(SAMPLE_IMAGES, len(samples)))
    points = road.points(road.network.full_depth)
    # A few rows for a moment: they drive nobody's out, and what was not written has no price.
    store = Store(scratch, budget_bytes=sys.maxsize, reserve_bytes=0)
    live = Chain(samples, road, views, store, kept=())
    decode = _seconds_of(lambda: live.values(few, 0, 0)) / len(few)
    pixels = live.values(few, 0, 0)
    normalise = _seconds_of(partial(road.segment(0, 0), pixels)) / len(few)
    change = 0.0
    if views.policy != "none":
        names = [sample.digest for sample in samples[: len(few)]]
        change = _seconds_of(lambda: augment(pixels, views.policy, (0, 1), names)) / len(few)
    stages, values = [], pixels
    for stage in range(road.network.full_depth):
        segment, before = road.segment(stage, stage + 1), values
        stages.append(_seconds_of(partial(segment, before)) / len(few))
        values = segment(values)
    rows = torch.zeros((len(few), MEASURED_BYTES // len(few)), dtype=torch.uint8)
    shelf = store.shelf({"measured": uuid.uuid4().hex})
    # Of each turn its own, since what is there is not written again.
    turns = [keys_of([f"{turn} {row}" for row in few]) for turn in range(REPEATS)]
    unwritten = iter(turns)

    def write() -> None:
        shelf.put(next(unwritten), rows)
        shelf.flush()

    try:
        written = _seconds_of(write)
        read = _seconds_of(lambda: shelf.read(turns[0]))
    finally:
        shutil.rmtree(shelf.folder, ignore_errors=True)
    return Prices(
        decode,
        change,
        normalise,
        tuple(stages),
        tuple(
            sum(points[needed].nbytes for needed in road.network.inputs(point))
            for point in range(len(points))
        ),
        read / rows.nbytes,
        written / rows.nbytes,
    )


def _seconds_of(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        if torch.accelerator.is_available():
            # Its kernels are only queued until then.
            torch.accelerator.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def choose(
    need: Need,
    prices: Prices,
    absent: Callable[[int], int],
    room_bytes: int,
    starts: Iterable[int],
) -> Choice:
    """The cheapest of the starts, of equals the earliest; the pixels where nothing is asked for.

    What is put into the store is for later trials too, which nobody can count beforehand (most are
    pruned, and the sampler favours some depths): it is charged as if one more will read it.

    absent: number of rows that the store lacks at a point; room_bytes: that they may take.
    """
    if need.passes == 0:
        return Choice(0, 0, 0.0)
    costs = {start: _cost(start, need, prices, absent, room_bytes) for start in starts}
    start = min(costs, key=lambda start: (costs[start].charged, start))
    cost = costs[start]
    return Choice(start, cost.below, cost.seconds, cost.keeps_pixels)


def planned_chain(
    samples: Sequence[Sample],
    road: Road,
    views: Views,
    store: Store,
    need: Need,
    prices: Prices,
    *,
    reuse: bool,
) -> tuple[Chain, Choice]:
    """The chain that starts where it is cheapest, and the choice. reuse: else from pixels."""
    survey = Chain(samples, road, views, store, kept=range(need.point + 1))

    # Every start is compared with the pixels, and each answer asks for all images.
    @cache
    def absent(point: int) -> int:
        # Pixels are kept as they are, whatever becomes of them.
        return sum(len(survey.absent(view, point)) for view in (need.views if point else (0,)))

    starts = range(need.point + 1) if reuse else range(1)
    choice = choose(need, prices, absent, store.room_bytes, starts)
    kept = {*road.network.inputs(choice.start)}
    kept |= {choice.below} if choice.below else set()
    kept |= {0} if choice.keeps_pixels else set()
    return Chain(samples, road, views, store, kept), choice


@dataclass(frozen=True)
class _Cost:
    """Seconds of a trial. fill: to have in the store what it lacks; passes: all else.

    below, keeps_pixels: as in the `Choice` that follows from it.
    """

    fill: float
    passes: float
    below: int
    keeps_pixels: bool

    @property
    def seconds(self) -> float:
        return self.fill + self.passes

    @property
    def charged(self) -> float:
        return self.fill / TRIALS_SERVED + self.passes


def _cost(
    start: int, need: Need, prices: Prices, absent: Callable[[int], int], room_bytes: int
) -> _Cost:
    reads = need.images * need.passes
    below = _below(start, absent)
    missing = absent(start) if start else 0
    bytes_missing = missing * prices.nbytes[start]
    # Where not all rows have room, the others are computed at every pass.
    share = _share(bytes_missing, room_bytes)
    kept_share = 1 - missing / (need.images * len(need.views)) * (1 - share)
    # Pixels have what the rows that are made of them leave.
    undecoded = 0 if below else min(absent(0), missing) if start else absent(0)
    left = max(0, room_bytes - bytes_missing)
    keeps_pixels = not start or undecoded * prices.nbytes[0] <= left
    pixel_share = _share(undecoded * prices.nbytes[0], left) if keeps_pixels else 0.0
    unkept = undecoded / need.images * (1 - pixel_share)
    pixels = (1 - unkept) * prices.reading(0) + unkept * prices.decode
    pixels += prices.change if need.changed else 0.0
    made = (prices.reading(below) if below else pixels) + prices.forward(below, start)
    live = pixels + prices.forward(0, need.point)
    if start == 0:
        return _Cost(prices.decode * undecoded * pixel_share, reads * live, below, keeps_pixels)
    kept = prices.reading(start) + prices.forward(start, need.point)
    return _Cost(
        prices.decode * undecoded * pixel_share + missing * share * (made + prices.writing(start)),
        reads * (kept_share * kept + (1 - kept_share) * live),
        below,
        keeps_pixels,
    )


def _share(wanted: int, room_bytes: int) -> float:
    """How much of it has room."""
    return 1.0 if wanted <= room_bytes else room_bytes / wanted


def _below(start: int, absent: Callable[[int], int]) -> int:
    """The last point before `start` whose rows are all in the store; 0, the pixels, at worst."""
    return next((point for point in range(start - 1, 0, -1) if not absent(point)), 0)
