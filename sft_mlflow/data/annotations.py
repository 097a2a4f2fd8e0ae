"""Boxes and masks held against their images: what is wrong with them, and what is left.

Classes of images need none of this. It comes after the scan, which knows the images' sizes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sft_mlflow.data.findings import Finding, fault
from sft_mlflow.data.images import BrokenImageError
from sft_mlflow.data.masks import MaskFacts, mask_facts
from sft_mlflow.data.ordered import THREADS, ordered_map
from sft_mlflow.data.readers.listing import Entry, Listing
from sft_mlflow.data.scan import FileFacts, Problem
from sft_mlflow.data.truth import Box, Mask, MaskValues
from sft_mlflow.errors import DataError

Faulty = Literal["clip", "skip", "error"]

# A box may reach so many pixels beyond its image: some programs count from one, others round.
ROUNDING_PIXELS = 1.0
# Less than a pixel wide or high, nothing can be seen of an object.
LEAST_PIXELS = 1.0
# So small, an object is hard to find for any detector.
SMALL_PIXELS = 8.0
_SHOWN_ERRORS = 10


@dataclass(frozen=True)
class Examined:
    """Entries with what is left of their truth, facts with the problems of masks, and findings."""

    entries: tuple[Entry, ...]
    facts: tuple[FileFacts, ...]
    findings: tuple[Finding, ...]


def examine_annotations(
    listing: Listing, facts: Sequence[FileFacts], faulty: Faulty = "clip"
) -> Examined:
    """What is left of the listing's boxes and masks, each held against its image.

    facts: one an entry, in order. faulty: `clip` cuts boxes off at the edges of their image and
    leaves out what cannot be mended, `skip` leaves out every faulty box, `error` accepts none.
    An image without boxes stays, as an example of nothing; one that lost all of its boxes goes, and
    so does one without a usable mask.
    Raises DataError, which lists faults by file and line or id, where none is accepted.
    """
    if listing.task == "detection":
        examined = _with_boxes(listing, facts, faulty)
    elif listing.task == "segmentation" and listing.mask_values is not None:
        examined = _with_masks(listing, facts, listing.mask_values)
    else:
        return Examined(listing.entries, tuple(facts), listing.findings)
    findings = (*listing.findings, *examined.findings)
    faults = [finding for finding in findings if finding.severity != "note"]
    if faulty == "error" and faults:
        shown = [f"  {finding.message}" for finding in faults[:_SHOWN_ERRORS]]
        if len(faults) > _SHOWN_ERRORS:
            shown.append(f"  … and {len(faults) - _SHOWN_ERRORS} more")
        raise DataError(
            "\n".join(
                (
                    f"{listing.uri}: {len(faults)} faults in its annotations:",
                    *shown,
                    "Repair them, or let them be mended (faulty=clip) or left out (faulty=skip).",
                )
            )
        )
    return replace(examined, findings=findings)


def _with_boxes(listing: Listing, facts: Sequence[FileFacts], faulty: Faulty) -> Examined:
    entries, examined, findings = [], [], []
    empty: list[str] = []
    small = boxes = 0
    for entry, fact in zip(listing.entries, facts, strict=True):
        truth = entry.truth
        if fact.problem is not None or not isinstance(truth, tuple):
            entries.append(entry)
            examined.append(fact)
            continue
        kept: dict[Box, None] = {}
        for given in truth:
            box = _in_pixels(given, fact) if listing.relative else given
            found, fault = _within(box, fact, faulty)
            if fault is not None:
                findings.append(_finding(entry.path, given, *fault))
            if found is None:
                continue
            if found in kept:
                findings.append(
                    _finding(entry.path, given, "duplicate-box", "is there twice; one is kept")
                )
            kept[found] = None
        entries.append(replace(entry, truth=tuple(kept)))
        # It shows something, so it is no example of nothing.
        lost = (truth or entry.lost) and not kept
        problem = Problem("bad-boxes", "none of its boxes can be used") if lost else None
        examined.append(replace(fact, problem=problem))
        if not truth and not lost:
            empty.append(str(entry.path))
        boxes += len(kept)
        small += sum(min(box.width, box.height) < SMALL_PIXELS for box in kept)
    if empty:
        message = (
            f"{len(empty)} of {len(facts)} images show no object; they count as examples of none"
        )
        findings.append(Finding("note", "without-objects", message, tuple(empty)))
    if small:
        message = f"{small} of {boxes} boxes are less than {SMALL_PIXELS:g} pixels wide or high"
        findings.append(Finding("note", "small-box", message))
    return Examined(tuple(entries), tuple(examined), tuple(findings))


def _in_pixels(box: Box, fact: FileFacts) -> Box:
    return Box(
        box.label,
        box.xmin * fact.width,
        box.ymin * fact.height,
        box.xmax * fact.width,
        box.ymax * fact.height,
        box.where,
    )


def _within(box: Box, fact: FileFacts, faulty: Faulty) -> tuple[Box | None, tuple[str, str] | None]:
    """What is left of the box, if anything, and the kind of its fault with what becomes of it."""
    shown = ", ".join(f"{value:g}" for value in (box.xmin, box.ymin, box.xmax, box.ymax))
    if not (box.width > 0 and box.height > 0):
        return None, ("empty-box", f"({shown}) is empty or inverted; left out")
    clipped = replace(
        box,
        xmin=max(box.xmin, 0.0),
        ymin=max(box.ymin, 0.0),
        xmax=min(box.xmax, float(fact.width)),
        ymax=min(box.ymax, float(fact.height)),
    )
    size = f"its image of {fact.width} x {fact.height}"
    if not (clipped.width > 0 and clipped.height > 0):
        return None, ("box-outside", f"({shown}) lies outside {size}; left out")
    if min(clipped.width, clipped.height) < LEAST_PIXELS:
        return None, ("tiny-box", f"({shown}) is less than a pixel wide or high; left out")
    beyond = max(
        clipped.xmin - box.xmin,
        clipped.ymin - box.ymin,
        box.xmax - clipped.xmax,
        box.ymax - clipped.ymax,
    )
    if beyond <= ROUNDING_PIXELS:
        return clipped, None
    if faulty == "skip":
        return None, ("box-outside", f"({shown}) reaches beyond {size}; left out")
    return clipped, ("box-outside", f"({shown}) reaches beyond {size}; clipped")


def _finding(path: Path, box: Box, kind: str, what: str) -> Finding:
    return fault(kind, f"{box.where or path}: {box.label} {what}", path)


def _with_masks(listing: Listing, facts: Sequence[FileFacts], values: MaskValues) -> Examined:
    def look(mask: Mask) -> MaskFacts | BrokenImageError:
        try:
            return mask_facts(mask.path, values)
        except BrokenImageError as error:
            return error

    entries, examined = [], []
    unknown: dict[str, list[Path]] = defaultdict(list)
    masks = [entry.truth for entry in listing.entries if isinstance(entry.truth, Mask)]
    looked = ordered_map(look, masks, ahead=4 * THREADS)
    for entry, fact, mask, found in zip(listing.entries, facts, masks, looked, strict=True):
        problem = fact.problem
        if isinstance(found, BrokenImageError):
            problem = problem or Problem("bad-mask", f"its mask {found}")
        else:
            if problem is None and (found.width, found.height) != (fact.width, fact.height):
                problem = Problem(
                    "bad-mask",
                    f"its mask {mask.path} has {found.width} x {found.height} pixels, the image "
                    f"{fact.width} x {fact.height}",
                )
            if problem is None:
                classes = tuple(sorted(found.pixels))
                entry = replace(entry, truth=replace(mask, digest=found.digest, classes=classes))
                for value in found.unknown:
                    unknown[value].append(mask.path)
        entries.append(entry)
        examined.append(replace(fact, problem=problem))
    return Examined(tuple(entries), tuple(examined), tuple(_unknown_values(unknown)))


def _unknown_values(unknown: dict[str, list[Path]]) -> Iterator[Finding]:
    for value, paths in sorted(unknown.items()):
        message = (
            f"value {value} in {len(paths)} masks is no class; its pixels count neither for nor "
            f"against a model (ignore_index says so without this warning)"
        )
        yield Finding("warning", "unknown-value", message, tuple(map(str, paths)))
