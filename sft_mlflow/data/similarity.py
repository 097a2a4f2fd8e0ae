"""Pictures that look the same: perceptual hashes propose, thumbnails decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sft_mlflow.data.scan import FileFacts

# Two of at most 4 different bits agree in at least one of 5 bands (pigeonhole), so only pictures
# that share a band are compared.
HASH_DISTANCE = 4
_BAND_BITS = (13, 13, 13, 13, 12)
# Mean difference of two thumbnails, in grey levels of 255 and as a share of their contrast. Tuned
# on real pictures: most copies re-encoded or resized stay below both; of 10,000 CIFAR-10 test
# images no two do, and of the 1,797 digits a few ones that are told apart with difficulty.
THUMBNAIL_LEVELS = 8.0
THUMBNAIL_CONTRAST = 0.12
# Of many thousands with one hash (blank pages) each is compared with this many others, nearest in
# brightness first; clusters still form, since near duplicates are chained.
_WINDOW = 32
_CHUNK = 4_096


def near_duplicates(facts: Sequence[FileFacts]) -> tuple[tuple[int, ...], ...]:
    """Clusters of positions whose pictures look the same, bytes equal or not.

    facts: without problems. Positions rise within a cluster, clusters by their first position.
    Time grows with the number of files, not with its square.
    """
    if len(facts) < 2:
        return ()
    # Two kinds, since either is unsure somewhere: phash of blur, dhash of flat areas.
    hashes = np.array([fact.hashes for fact in facts], dtype=np.uint64)
    starts = range(0, len(facts), _CHUNK)
    levels = [_levels(_thumbnails(facts[start : start + _CHUNK])) for start in starts]
    means, contrasts = np.concatenate(levels, axis=1)
    found = [np.empty((0, 2), dtype=np.intp)]
    for pairs in chain.from_iterable(_proposed(kind, means) for kind in hashes.T):
        for start in range(0, len(pairs), _CHUNK):
            left, right = pairs[start : start + _CHUNK].T
            difference = _thumbnails([facts[one] for one in left]).astype(np.int16)
            difference -= _thumbnails([facts[one] for one in right])
            apart = np.abs(difference).mean(axis=1)
            allowed = THUMBNAIL_CONTRAST * np.minimum(contrasts[left], contrasts[right])
            # One grey level always passes: a blank picture has no contrast to compare with.
            alike = (apart <= THUMBNAIL_LEVELS) & (apart <= np.maximum(allowed, 1.0))
            found.append(pairs[start : start + _CHUNK][alike])
    return _clusters(np.concatenate(found), len(facts))


def _thumbnails(facts: Sequence[FileFacts]) -> NDArray[np.uint8]:
    """Bytes (F, 768). Of some facts at a time: all thumbnails once more would be the most of it."""
    return np.frombuffer(b"".join(fact.thumbnail for fact in facts), np.uint8).reshape(
        len(facts), -1
    )


def _levels(thumbnails: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean and deviation (2, F), in grey levels of 255."""
    return np.stack([thumbnails.mean(axis=1), thumbnails.std(axis=1)])


def _proposed(hashes: NDArray[np.uint64], means: NDArray[np.float64]) -> Iterator[NDArray[np.intp]]:
    """Pairs (P, 2) that share a band, are near in hash and near in mean brightness."""
    shift = 0
    for number, bits in enumerate(_BAND_BITS):
        band = (hashes >> np.uint64(shift)) & np.uint64(2**bits - 1)
        shift += bits
        order = np.lexsort((means, band))
        for step in range(1, min(_WINDOW, len(order) - 1) + 1):
            left, right = order[:-step], order[step:]
            near = band[left] == band[right]
            # Thumbnails cannot differ by less than their means do.
            near &= means[right] - means[left] <= THUMBNAIL_LEVELS
            if not near.any():
                break
            left, right = left[near], right[near]
            distance = np.bitwise_count(hashes[left] ^ hashes[right])
            close = distance <= HASH_DISTANCE
            if number > 0:
                # Equal hashes share every band: the first one has proposed them.
                close &= distance > 0
            yield np.stack([left[close], right[close]], axis=1)


def _clusters(pairs: NDArray[np.intp], count: int) -> tuple[tuple[int, ...], ...]:
    if not len(pairs):
        return ()
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    part = connected_components(graph, directed=False)[1]
    members: dict[int, list[int]] = {}
    for position in np.unique(pairs):
        members.setdefault(int(part[position]), []).append(int(position))
    return tuple(tuple(cluster) for cluster in members.values())
