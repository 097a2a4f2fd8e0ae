"""Which side of the split each image stands on, by a hash of its content or group.

A sample's side depends on (seed, its group or else its content) and on nothing else, so it keeps
its side when data are added, removed, moved or relabelled. The price is that sides are not
stratified exactly: each class is divided like independent draws with the fractions as
probabilities, and a small class may miss a side, which `check` reports together with a seed that
covers every class. Quotas per class would move samples from test to train when data are added,
and with them every figure that was measured before.

Where an image shows several classes, no quotas would do. Of some draws, which differ by a number
beside the seed, the one is taken that keeps the mix of classes best; so the side of a sample hangs
on the others through that number alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sft_mlflow.data.manifest import SPLITS, Sample, Split
from sft_mlflow.data.readers.listing import Listing
from sft_mlflow.data.scan import FileFacts
from sft_mlflow.data.truth import classes_in, identity

VALID_FRACTION = 0.15
TEST_FRACTION = 0.15
FRACTIONS: dict[Split, float] = {"valid": VALID_FRACTION, "test": TEST_FRACTION}
# Draws to choose from where images show several classes, fewer where there are many images.
_DRAWS = 64
_DRAWN_UNITS = 500_000

# An image with two copies on different sides stays on the side that judges.
_PRECEDENCE: tuple[Split, ...] = ("test", "valid", "train")


def assign(listing: Listing, facts: Sequence[FileFacts], *, seed: int) -> tuple[Sample, ...]:
    """The usable samples with their sides, in listing order.

    facts: one an entry, in the same order. Left out are broken files, all copies of content that
    carries several labels, and copies that a given split puts on a second side: test keeps its
    copy before valid, valid before train.
    Given sides are respected. A side that no entry is given is drawn from train, whole units at a
    time: a unit is what shares a group or content, directly or through others. An entry without a
    side joins the given side of its unit, and else counts as train.
    """
    conflicting = conflicting_digests(listing, facts)
    usable = [
        number
        for number, fact in enumerate(facts)
        if fact.problem is None and fact.digest not in conflicting
    ]
    entries = [listing.entries[number] for number in usable]
    known = [facts[number] for number in usable]
    digests = [fact.digest for fact in known]
    units = _units(digests, [entry.group for entry in entries])
    members: dict[int, list[int]] = defaultdict(list)
    for index, unit in enumerate(units):
        members[unit].append(index)

    missing = missing_sides(listing)

    def drawn(word: str) -> list[Split]:
        """The side of each usable entry, where `word` and its unit decide what is drawn."""
        sides: list[Split] = ["train"] * len(usable)
        for indices in members.values():
            given = {entries[index].split for index in indices} - {None}
            if given <= {"train"}:
                groups = [group for index in indices if (group := entries[index].group) is not None]
                key = f"group {min(groups)}" if groups else f"content {digests[indices[0]]}"
                side = _draw(word, key, missing)
                for index in indices:
                    sides[index] = side
            else:
                joined = next(side for side in _PRECEDENCE if side in given)
                for index in indices:
                    sides[index] = entries[index].split or joined
        return sides

    words = [str(seed)]
    if missing:
        words += [f"{seed}, draw {number}" for number in range(1, draws(listing))]
    # What a given side holds fast says nothing about a draw.
    free = [at for at, entry in enumerate(entries) if entry.split in (None, "train")]
    shown = [classes_in(entries[at].truth) for at in free]

    def unevenness(sides: Sequence[Split]) -> float:
        return _unevenness([sides[at] for at in free], shown, missing)

    sides = min(map(drawn, words), key=unevenness) if len(words) > 1 else drawn(words[0])

    keeps: dict[str, Split] = {}
    for digest, side in zip(digests, sides, strict=True):
        keeps[digest] = min(keeps.get(digest, side), side, key=_PRECEDENCE.index)
    return tuple(
        Sample(entry.path, entry.truth, fact.digest, side, entry.group, fact.width, fact.height)
        for entry, fact, side in zip(entries, known, sides, strict=True)
        if keeps[fact.digest] == side
    )


def draws(listing: Listing) -> int:
    """How many draws `assign` chooses from: one where an image shows one class."""
    if listing.task == "classification":
        return 1
    return max(1, min(_DRAWS, _DRAWN_UNITS // max(1, len(listing.entries))))


def missing_sides(listing: Listing) -> tuple[Split, ...]:
    """The sides among valid and test that no entry is given, which are drawn from train."""
    given = {entry.split for entry in listing.entries}
    return tuple(side for side in SPLITS if side != "train" and side not in given)


def conflicting_digests(listing: Listing, facts: Sequence[FileFacts]) -> frozenset[str]:
    """Digests of readable content of which several things are said to be true."""
    truths: dict[str, set[str]] = defaultdict(set)
    for entry, fact in zip(listing.entries, facts, strict=True):
        if fact.problem is None:
            truths[fact.digest].add(identity(entry.truth))
    return frozenset(digest for digest, found in truths.items() if len(found) > 1)


def units_per_class(samples: Sequence[Sample]) -> dict[str, int]:
    """How many units, which no split divides, hold samples of each class."""
    units = _units([s.digest for s in samples], [s.group for s in samples])
    found: dict[str, set[int]] = defaultdict(set)
    for sample, unit in zip(samples, units, strict=True):
        for name in classes_in(sample.truth):
            found[name].add(unit)
    return {label: len(members) for label, members in found.items()}


def _units(digests: Sequence[str], groups: Sequence[str | None]) -> list[int]:
    """The number of the unit of each sample: a connected part of the graph content - group."""
    nodes: dict[tuple[str, str], int] = {}
    own = [nodes.setdefault(("content", digest), len(nodes)) for digest in digests]
    edges = [
        (node, nodes.setdefault(("group", group), len(nodes)))
        for node, group in zip(own, groups, strict=True)
        if group is not None
    ]
    if not edges:
        return own
    start, end = np.array(edges).T
    graph = coo_array((np.ones(len(edges)), (start, end)), shape=(len(nodes), len(nodes)))
    part = connected_components(graph, directed=False)[1]
    return [int(part[node]) for node in own]


def _unevenness(
    sides: Sequence[Split], shown: Sequence[frozenset[str]], drawn: Sequence[Split]
) -> float:
    """How far the classes, and the images, are from standing on each drawn side in its fraction."""
    counts: dict[str, Counter[Split]] = defaultdict(Counter)
    for side, classes in zip(sides, shown, strict=True):
        for name in ("", *classes):
            counts[name][side] += 1
    return sum(
        abs(found[side] / found.total() - fraction)
        for found in counts.values()
        for side, fraction in FRACTIONS.items()
        if side in drawn
    )


def _draw(word: str, key: str, missing: Sequence[Split]) -> Split:
    """The side of one unit. Each side owns a fixed interval, whether or not it is missing."""
    hashed = hashlib.sha256(f"{word} {key}".encode()).digest()
    position = int.from_bytes(hashed[:8], "big") / 2**64
    if position < TEST_FRACTION:
        return "test" if "test" in missing else "train"
    if position < TEST_FRACTION + VALID_FRACTION:
        return "valid" if "valid" in missing else "train"
    return "train"
