"""The road of an image: file, pixels, stage 1 … stage D.

A *point* of the road is the number of stages that have run; point 0 are the pixels. What is kept
at a point is read from the store; what the store lacks there is computed from the nearest kept
point below, and put into the store. So a shelf that is empty, half filled, damaged or evicted
gives the same values, only later.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision import tv_tensors

from sft_mlflow.data.images import read_bytes
from sft_mlflow.data.manifest import Sample
from sft_mlflow.data.ordered import THREADS, ordered_map
from sft_mlflow.data.pixels import PixelSpec, pixels_of
from sft_mlflow.errors import DataError
from sft_mlflow.reuse.store import Keys, Store, empty_like_rows, keys_of
from sft_mlflow.sources.folding import folded
from sft_mlflow.sources.network import StagedNetwork, normalise
from sft_mlflow.sources.source_model import Preprocessing
from sft_mlflow.training.augmentation import augment, moved
from sft_mlflow.training.precision import Arithmetic
from sft_mlflow.training.recipe import Augmentation

# To be raised when the same image, source and point give other values than before, or lie in the
# store in another way.
VERSION = 3
# Between two looks at what another process has filled.
WAIT_SECONDS = 1.0

Rows = NDArray[np.intp]


@dataclass(frozen=True)
class Views:
    """How an image is changed at random; view 0 is the image as it is.

    seed: each view of each image has draws of its own, whatever batch it is in.
    """

    policy: Augmentation
    seed: int


AS_THEY_ARE = Views("none", 0)


@dataclass(frozen=True)
class Point:
    """What stands at a point of the road for one image."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape)) * self.dtype.itemsize


@dataclass(frozen=True)
class Road:
    """A source's network with all that its values depend on but the image."""

    network: StagedNetwork
    source_sha256: str
    preprocessing: Preprocessing
    arithmetic: Arithmetic
    device: torch.device

    @property
    def pixel_spec(self) -> PixelSpec:
        """How a file becomes the pixels that the road begins at."""
        return self.preprocessing.pixels

    def segment(self, begin: int, end: int) -> Callable[[Tensor], Tensor]:
        """The function from values at one point to those at a later one, without gradients."""
        run = folded(self.network.segment(begin, end)) if begin < end else nn.Identity()
        mean, std = self.preprocessing.mean, self.preprocessing.std

        @torch.no_grad()
        def function(values: Tensor) -> Tensor:
            values = values.to(self.device)
            if begin == 0:
                values = normalise(values, mean, std)
            with self.arithmetic.autocast():
                result: Tensor = run(values)
            return result

        return function

    def points(self, end: int) -> tuple[Point, ...]:
        """What stands at each point up to `end`, found by sending two grey images there."""
        shape = self.pixel_spec.shape
        values = torch.full((2, *shape), 127, dtype=torch.uint8)
        found = [Point(shape, torch.uint8)]
        for stage in range(end):
            values = self.segment(stage, stage + 1)(values)
            found.append(Point(tuple(values.shape[1:]), values.dtype))
        return tuple(found)

    def address(self, point: int, views: Views) -> dict[str, object]:
        """What rows at a point depend on."""
        if point == 0:
            return {"version": VERSION, "pixels": asdict(self.pixel_spec)}
        return {
            "version": VERSION,
            "torch": torch.__version__,
            "source": self.source_sha256,
            "preprocessing": asdict(self.preprocessing),
            "point": point,
            "stage": self.network.stages[point - 1].name,
            "precision": self.arithmetic.precision,
            "device": self.device.type,
            # By which kernels are chosen.
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "views": asdict(views),
        }


class Chain:
    """Values of some images along a road, at the points that are kept and between them."""

    def __init__(
        self,
        samples: Sequence[Sample],
        road: Road,
        views: Views,
        store: Store,
        kept: Collection[int],
    ) -> None:
        self.samples = samples
        self._road = road
        self._views = views
        self._digests = [sample.digest for sample in samples]
        self._shelves = {p: store.shelf(road.address(p, views)) for p in sorted(kept)}
        self._segments: dict[tuple[int, int], Callable[[Tensor], Tensor]] = {}
        self._keys_of_views: dict[int, Keys] = {}
        # Spent so far on reading and computing values.
        self.seconds = 0.0

    def inputs(self, rows: Rows, view: int, point: int) -> tuple[Tensor, ...]:
        """What the network takes from there on, in the order of `StagedNetwork.inputs`.

        At point 0 normalised images (B, 3, H, W).
        """
        begun = time.perf_counter()
        if point == 0:
            values = [self._road.segment(0, 0)(self.values(rows, view, 0))]
        else:
            found = self._values_before(rows, view, point)
            values = [some.to(self._road.device) for some in found.values()]
        self.seconds += time.perf_counter() - begun
        return tuple(values)

    def _values_before(self, rows: Rows, view: int, point: int) -> dict[int, Tensor]:
        """Values at all that the network needs from a point on, each made of the one before."""
        known: dict[int, Tensor] = {}
        for needed in self._road.network.inputs(point):
            known[needed] = self.values(rows, view, needed, known)
        return known

    def values(
        self, rows: Rows, view: int, point: int, known: Mapping[int, Tensor] = MappingProxyType({})
    ) -> Tensor:
        """Values of those images at a point. At point 0, pixels (B, H, W, 3) uint8.

        known: values of the same images at earlier points.
        """
        if point == 0:
            pixels = self._kept_pixels(rows)
            if view == 0:
                return pixels
            names = [self._digests[row] for row in rows]
            return augment(pixels, self._views.policy, (self._views.seed, view), names)

        def make(where: NDArray[np.bool_]) -> Tensor:
            if where.all():
                return self._run(rows, view, point, known)
            of_these = {p: values[torch.from_numpy(where)] for p, values in known.items()}
            return self._run(rows[where], view, point, of_these)

        return self._through_store(self._keys(view)[rows], point, make)

    def moved(self, truth: tv_tensors.TVTensor, digest: str, view: int) -> tv_tensors.TVTensor:
        """A mask or boxes on the canvas, as the image of that digest is in that view."""
        policy = self._views.policy if view else "none"
        return moved(truth, policy, (self._views.seed, view), digest)

    def absent(self, view: int, point: int) -> Rows:
        """The images whose rows the store lacks, in that view, of what a network needs from there.

        Points that are not kept do not count.
        """
        needed = [p for p in self._road.network.inputs(point) if p in self._shelves]
        missing = [self._shelves[p].missing(self._keys(view)) for p in needed]
        return np.flatnonzero(np.logical_or.reduce(missing))

    def fill(self, point: int) -> Iterator[tuple[int, int]]:
        """Have what is needed of all images as they are, from that point on, in the store.

        As far as it has room. Yields (rows there, rows in all) as it gets on, or as another process
        does. Whoever stops it early finds the rest computed when it is asked for.
        """
        total = len(self._digests)
        lock = self._shelves[point].lock()
        while not _acquired(lock):
            yield total - len(self.absent(0, point)), total
        try:
            rows = self.absent(0, point)
            batch = self._road.pixel_spec.together
            for start in range(0, len(rows), batch):
                some = rows[start : start + batch]
                begun = time.perf_counter()
                self._values_before(some, 0, point)
                self.seconds += time.perf_counter() - begun
                if not self._shelves[point].takes_rows:
                    # What has no room is computed when it is asked for, not now and in vain.
                    break
                yield total - len(rows) + start + len(some), total
            self.flush()
        finally:
            lock.release()

    def note_use(self) -> None:
        """Have the store know that its rows are in use, though none is read just now."""
        for shelf in self._shelves.values():
            shelf.note_use()

    @property
    def had_room(self) -> bool:
        """Whether the store took all that was given to it so far."""
        return all(shelf.takes_rows for shelf in self._shelves.values())

    def flush(self) -> None:
        """Write what was computed and is to be kept."""
        for shelf in self._shelves.values():
            shelf.flush()

    def _kept_pixels(self, rows: Rows) -> Tensor:
        # Pixels are kept as they are; changing them is cheap beside decoding.
        return self._through_store(self._keys(0)[rows], 0, lambda where: self._decode(rows[where]))

    def _through_store(
        self, keys: Keys, point: int, make: Callable[[NDArray[np.bool_]], Tensor]
    ) -> Tensor:
        """Rows from the shelf of the point, if it is kept; the others made, and put there.

        make: values of those of the rows that are asked for.
        """
        shelf = self._shelves.get(point)
        if shelf is None:
            return make(np.ones(len(keys), bool))
        stored, found = shelf.read(keys)
        if stored is not None and found.all():
            return stored
        made = make(~found)
        shelf.put(keys[~found], made.detach().cpu())
        if stored is None:
            return made
        values = empty_like_rows(made, len(keys))
        values[torch.from_numpy(found)] = stored.to(made.device)
        values[torch.from_numpy(~found)] = made
        return values

    def _run(self, rows: Rows, view: int, point: int, known: Mapping[int, Tensor]) -> Tensor:
        """Values at a point, from the nearest point below that is known or kept."""
        below = max((p for p in (*known, *self._shelves) if p < point), default=0)
        if (below, point) not in self._segments:
            self._segments[below, point] = self._road.segment(below, point)
        values = known[below] if below in known else self.values(rows, view, below)
        return self._segments[below, point](values)

    def _decode(self, rows: Rows) -> Tensor:
        spec = self._road.pixel_spec

        def pixels(row: int) -> NDArray[np.uint8]:
            sample = self.samples[row]
            data = read_bytes(sample.path)
            if hashlib.sha256(data).hexdigest() != sample.digest:
                raise DataError(
                    f"{sample.path}: the file changed since it was checked. Start again."
                )
            return pixels_of(data, spec)

        decoded = ordered_map(pixels, rows.tolist(), ahead=4 * THREADS)
        return torch.from_numpy(np.stack(list(decoded)))

    def _keys(self, view: int) -> Keys:
        """Of all images in that view: 16 bytes an image."""
        if view not in self._keys_of_views:
            self._keys_of_views[view] = keys_of([f"{digest} {view}" for digest in self._digests])
        return self._keys_of_views[view]


def _acquired(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=WAIT_SECONDS)
    except Timeout:
        return False
    return True
