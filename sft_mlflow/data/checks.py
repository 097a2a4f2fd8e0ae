"""The report on a data set before an hour is spent on it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from sft_mlflow.data.findings import SEVERITIES, Finding, Severity
from sft_mlflow.data.manifest import IMBALANCED, SPLITS, Manifest, Sample, Split, imbalance
from sft_mlflow.data.readers.listing import Entry, Listing
from sft_mlflow.data.scan import FileFacts
from sft_mlflow.data.similarity import near_duplicates
from sft_mlflow.data.splitting import (
    assign,
    conflicting_digests,
    draws,
    missing_sides,
    units_per_class,
)
from sft_mlflow.data.truth import TaskName, Truth, classes_in, identity

# Below this many training images a class is learnt by heart rather than learnt.
FEW_SAMPLES = 10
# Shorter side in pixels, and longer to shorter side.
TINY_SIDE = 32
ELONGATED = 4.0

_SHOWN_FINDINGS = 5
_SHOWN_PATHS = 3
# Trying seeds must not outlast the scan.
_SEED_TRIALS = 100
_SEED_HASHES = 500_000


@dataclass(frozen=True)
class CheckReport:
    """What the check found, worst first.

    files: listed; broken: give no pixels; left_out: readable, but not used; images: usable ones on
    each side of the split; counts: those of them that show each class.
    """

    name: str
    uri: str
    files: int
    broken: int
    left_out: int
    images: dict[Split, int]
    counts: dict[Split, dict[str, int]]
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return asdict(self)

    def lines(self) -> tuple[str, ...]:
        """The report as lines of text, long lists cut and counted."""
        head = (
            f"{self.name}: {self.files} files, {len(self.counts['train'])} classes; "
            + ", ".join(f"{split} {total}" for split, total in self.images.items())
            + f"; {self.broken} broken, {self.left_out} left out"
        )
        return (head, *_class_lines(self.counts), *_finding_lines(self.findings))


def check(listing: Listing, facts: Sequence[FileFacts], manifest: Manifest) -> CheckReport:
    """The report on listed files, their facts (one an entry, in order) and what became of them.

    listing: with its annotations examined, and what was found in them among its findings.
    """
    usable = [
        (entry, fact)
        for entry, fact in zip(listing.entries, facts, strict=True)
        if fact.problem is None
    ]
    side = {(s.path, s.truth): s.split for s in manifest.samples}
    findings = [
        *listing.findings,
        *_broken(facts),
        *_strays(listing),
        *_conflicts(listing, facts),
        *_exact_duplicates(usable),
        *_near_duplicates(usable, side),
        *_divided_groups(manifest),
        *_missing(listing, facts, manifest),
        *_small_classes(manifest),
        *_odd(usable, listing.task),
    ]
    return CheckReport(
        name=manifest.name,
        uri=manifest.uri,
        files=len(facts),
        broken=len(facts) - len(usable),
        left_out=len(usable) - len(manifest.samples),
        images={split: len(manifest.side(split)) for split in SPLITS},
        counts={split: manifest.counts(split) for split in SPLITS},
        findings=tuple(sorted(findings, key=lambda f: SEVERITIES.index(f.severity))),
    )


def _broken(facts: Sequence[FileFacts]) -> Iterator[Finding]:
    for fact in facts:
        if fact.problem is not None:
            # A name that is not UTF-8 is shown by its escapes.
            shown = str(fact.path).encode(errors="backslashreplace").decode()
            message = f"{shown}: {fact.problem.reason}; left out"
            yield Finding("warning", fact.problem.kind, message, (shown,))


def _strays(listing: Listing) -> Iterator[Finding]:
    for path in listing.strays:
        message = f"{path}: lies outside the class folders; not used"
        yield Finding("warning", "stray", message, (str(path),))


def _conflicts(listing: Listing, facts: Sequence[FileFacts]) -> Iterator[Finding]:
    conflicting = conflicting_digests(listing, facts)
    copies: dict[str, list[Entry]] = defaultdict(list)
    for entry, fact in zip(listing.entries, facts, strict=True):
        if fact.digest in conflicting:
            copies[fact.digest].append(entry)
    for entries in copies.values():
        labels = ", ".join(sorted({repr(entry.label) for entry in entries}))
        said = f"the labels {labels}" if listing.task == "classification" else "several truths"
        message = f"one image has {said}; all its copies are left out"
        yield Finding("warning", "conflicting-labels", message, _paths(entries))


def _exact_duplicates(usable: Sequence[tuple[Entry, FileFacts]]) -> Iterator[Finding]:
    copies: dict[str, list[Entry]] = defaultdict(list)
    for entry, fact in usable:
        copies[fact.digest].append(entry)
    for entries in copies.values():
        if len(entries) < 2 or len({identity(entry.truth) for entry in entries}) > 1:
            continue
        given = {entry.split for entry in entries} - {None}
        if len(given) > 1:
            kept = next(split for split in reversed(SPLITS) if split in given)
            message = (
                f"one image is given on {_spoken(given)}; kept on {kept}, left out of the rest"
            )
            yield Finding("warning", "duplicate-across-splits", message, _paths(entries))
        else:
            message = f"one image is there {len(entries)} times; all copies are on one side"
            yield Finding("note", "exact-duplicate", message, _paths(entries))


def _near_duplicates(
    usable: Sequence[tuple[Entry, FileFacts]], side: dict[tuple[Path, Truth], Split]
) -> Iterator[Finding]:
    # Copies with the same bytes are told elsewhere: one of each stands for them here.
    distinct: dict[str, tuple[Entry, FileFacts]] = {}
    for entry, fact in usable:
        if (entry.path, entry.truth) in side:
            distinct.setdefault(fact.digest, (entry, fact))
    pictures = list(distinct.values())
    for cluster in near_duplicates([fact for _, fact in pictures]):
        entries = [pictures[position][0] for position in cluster]
        sides = {side[entry.path, entry.truth] for entry in entries}
        # Of boxes and masks it is no wonder that they differ.
        labels = {entry.truth for entry in entries if isinstance(entry.truth, str)}
        under = f" under {len(labels)} labels" if len(labels) > 1 else ""
        if len(sides) > 1:
            message = (
                f"{len(entries)} images look the same{under} and stand on {_spoken(sides)}; "
                "give them one group, or delete all but one"
            )
            yield Finding("warning", "near-duplicate-across-splits", message, _paths(entries))
        else:
            message = f"{len(entries)} images look the same{under}"
            severity: Severity = "warning" if under else "note"
            yield Finding(severity, "near-duplicate", message, _paths(entries))


def _divided_groups(manifest: Manifest) -> Iterator[Finding]:
    members: dict[str, list[Sample]] = defaultdict(list)
    for sample in manifest.samples:
        if sample.group is not None:
            members[sample.group].append(sample)
    for group, samples in members.items():
        sides = {sample.split for sample in samples}
        if len(sides) > 1:
            message = f"group {group!r} is given on {_spoken(sides)}; figures will be too good"
            paths = tuple(str(sample.path) for sample in samples)
            yield Finding("warning", "group-across-splits", message, paths)


def _missing(listing: Listing, facts: Sequence[FileFacts], manifest: Manifest) -> Iterator[Finding]:
    listed = set().union(*(classes_in(entry.truth) for entry in listing.entries))
    if unseen := sorted(set(listing.classes) - listed):
        message = f"{len(unseen)} classes are declared and shown by no image: {', '.join(unseen)}"
        yield Finding("note", "declared-only", message)
    for label in sorted(listed - set(manifest.classes)):
        message = f"class {label!r} has no usable image; it is no class of the model"
        yield Finding("error", "missing-on-side", message)
    lacking = {
        label: [split for split in SPLITS if not manifest.counts(split)[label]]
        for label in _uncovered(manifest.samples)
    }
    if not lacking:
        return
    units = units_per_class(manifest.samples)
    seed = covering_seed(listing, facts)
    for label, splits in lacking.items():
        severity: Severity = "error" if "train" in splits else "warning"
        few = units[label] < len(SPLITS)
        remedy = "add images or give a split"
        if seed is not None and not few:
            remedy = f"with seed={seed} no class of three images misses a side"
        have = f" (only {units[label]} of its images may be parted)" if few else ""
        message = f"class {label!r} has no image on {_spoken(splits)}{have}; {remedy}"
        yield Finding(severity, "missing-on-side", message)


def covering_seed(listing: Listing, facts: Sequence[FileFacts]) -> int | None:
    """The least seed with which no side is empty and no class of three units misses one, if any.

    None where nothing is drawn. To be chosen once and kept: another seed is another split.
    """
    if not missing_sides(listing):
        return None
    hashes = max(1, len(facts)) * draws(listing)
    seeds = max(1, min(_SEED_TRIALS, _SEED_HASHES // hashes))
    for seed in range(seeds):
        samples = assign(listing, facts, seed=seed)
        units = units_per_class(samples)
        full = len({sample.split for sample in samples}) == len(SPLITS)
        if full and not any(units[label] >= len(SPLITS) for label in _uncovered(samples)):
            return seed
    return None


def _uncovered(samples: Sequence[Sample]) -> list[str]:
    sides: dict[str, set[Split]] = defaultdict(set)
    for sample in samples:
        for name in classes_in(sample.truth):
            sides[name].add(sample.split)
    return sorted(label for label, found in sides.items() if len(found) < len(SPLITS))


def _small_classes(manifest: Manifest) -> Iterator[Finding]:
    train = manifest.counts("train")
    for label, count in train.items():
        if 0 < count < FEW_SAMPLES:
            message = f"class {label!r} has {count} training images; fewer than {FEW_SAMPLES}"
            yield Finding("warning", "few-samples", message)
    for side in ("valid", "test"):
        few = {k: n for k, n in manifest.counts(side).items() if 0 < n < FEW_SAMPLES}
        if few:
            least = min(few, key=few.__getitem__)
            message = (
                f"{len(few)} classes have fewer than {FEW_SAMPLES} images on {side} ({least!r} "
                f"has {few[least]}): what is measured there is rough"
            )
            yield Finding("note", "few-samples", message)
    present = {label: count for label, count in train.items() if count}
    if present:
        most, least = max(present, key=present.__getitem__), min(present, key=present.__getitem__)
        ratio = imbalance(present)
        if ratio >= IMBALANCED:
            message = (
                f"class {most!r} has {ratio:.1f} times the training images of {least!r} "
                f"({present[most]} to {present[least]})"
            )
            if manifest.task == "classification":
                message += "; accuracy will hide the small classes"
            yield Finding("warning", "imbalance", message)


def _odd(usable: Sequence[tuple[Entry, FileFacts]], task: TaskName) -> Iterator[Finding]:
    shown = "the centre square is used" if task == "classification" else "much will be padding"
    tests: tuple[tuple[str, str, Callable[[FileFacts], bool]], ...] = (
        (
            "odd-size",
            f"are smaller than {TINY_SIDE} pixels and will be enlarged",
            lambda f: min(f.width, f.height) < TINY_SIDE,
        ),
        (
            "odd-size",
            f"are over {ELONGATED:g} times as long as wide; {shown}",
            lambda f: max(f.width, f.height) > ELONGATED * min(f.width, f.height),
        ),
        ("odd-mode", "have a palette", lambda f: f.mode in ("P", "PA")),
        ("odd-mode", "are CMYK", lambda f: f.mode == "CMYK"),
        (
            "odd-mode",
            "have 16 or more bits a pixel and are scaled to 8",
            lambda f: f.mode in ("I", "F") or f.mode.startswith("I;"),
        ),
        ("odd-mode", "are transparent and are laid over white", lambda f: f.transparent),
        ("odd-mode", "are turned by their EXIF orientation", lambda f: f.orientation > 1),
        ("odd-mode", "have several frames; the first is used", lambda f: f.frames > 1),
    )
    for kind, what, holds in tests:
        paths = tuple(str(entry.path) for entry, fact in usable if holds(fact))
        if paths:
            yield Finding("note", kind, f"{len(paths)} of {len(usable)} images {what}", paths)
    grey = {fact.mode in ("1", "L", "LA") for _, fact in usable}
    if len(grey) > 1:
        paths = tuple(str(e.path) for e, fact in usable if fact.mode in ("1", "L", "LA"))
        message = f"{len(paths)} of {len(usable)} images are grey, the others in colour"
        yield Finding("note", "odd-mode", message, paths)


def _class_lines(counts: dict[Split, dict[str, int]]) -> Iterator[str]:
    names = list(counts["train"])
    shown = names if len(names) <= 20 else names[:20]
    width = max((len(name) for name in shown), default=0)
    for name in shown:
        yield f"  {name:<{width}}  " + "  ".join(f"{s} {counts[s][name]}" for s in SPLITS)
    if len(names) > len(shown):
        yield f"  … and {len(names) - len(shown)} more classes"


def _finding_lines(findings: Sequence[Finding]) -> Iterator[str]:
    ordered = sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), f.kind))
    for (severity, kind), same in groupby(ordered, key=lambda f: (f.severity, f.kind)):
        found = list(same)
        for finding in found[:_SHOWN_FINDINGS]:
            yield f"{severity}: {kind}: {finding.message}"
            unsaid = [path for path in finding.paths if path not in finding.message]
            yield from (f"    {path}" for path in unsaid[:_SHOWN_PATHS])
            if len(unsaid) > _SHOWN_PATHS:
                yield f"    … and {len(unsaid) - _SHOWN_PATHS} more"
        if len(found) > _SHOWN_FINDINGS:
            yield f"{severity}: {kind}: … and {len(found) - _SHOWN_FINDINGS} more of this kind"


def _paths(entries: Sequence[Entry]) -> tuple[str, ...]:
    return tuple(str(entry.path) for entry in entries)


def _spoken(splits: Iterable[Split | None]) -> str:
    wanted = set(splits)
    *first, last = (split for split in SPLITS if split in wanted)
    return f"{', '.join(first)} and {last}" if first else last
