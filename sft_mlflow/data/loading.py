"""From a URI to a checked manifest, and manifests as files."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from sft_mlflow.data.annotations import Faulty, examine_annotations
from sft_mlflow.data.checks import CheckReport, check, covering_seed
from sft_mlflow.data.images import ProblemKind
from sft_mlflow.data.manifest import SPLITS, Manifest, Sample
from sft_mlflow.data.readers import Listing, read
from sft_mlflow.data.scan import FileFacts, Progress, scan
from sft_mlflow.data.splitting import assign
from sft_mlflow.data.truth import (
    TaskName,
    as_text,
    classes_in,
    from_text,
    task_named,
    values_from,
    values_text,
)
from sft_mlflow.errors import DataError
from sft_mlflow.whole_file import whole_file

_SHOWN_BROKEN = 10
_ROWS = 4096

_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("path", "label", "split", "group", "digest")),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)
# Manifests of models that were made before these were known.
_LATER = ("width", "height")


@dataclass(frozen=True, slots=True)
class BrokenFile:
    """A listed file that gives no pixels, or whose boxes or mask cannot be used, and why."""

    path: Path
    label: str
    kind: ProblemKind
    reason: str


@dataclass(frozen=True)
class Surveyed:
    """What was listed and what is to be known about it, fit for training or not.

    unfit: why it cannot be trained on, or None.
    """

    manifest: Manifest
    report: CheckReport
    broken: tuple[BrokenFile, ...]
    unfit: str | None


@dataclass(frozen=True)
class Loaded:
    """A manifest that can be trained on, the report on it, and the files it had to do without."""

    manifest: Manifest
    report: CheckReport
    broken: tuple[BrokenFile, ...]


def load_manifest(
    uri: str,
    *,
    task: TaskName | None = None,
    seed: int = 0,
    cache: Path,
    broken: Literal["skip", "error"] = "skip",
    faulty: Faulty = "clip",
    ignored: frozenset[str] = frozenset(),
    progress: Progress | None = None,
) -> Loaded:
    """The checked manifest of a folder, a table (a saved manifest, too) or a named data set.

    task: what is to be learnt, None for what the source is most likely for; seed: of the sides that
    the source does not give; cache: folder for data sets that are written or downloaded; broken:
    leave such files out and list them, or make them an error; faulty: what becomes of boxes and
    masks that are wrong; ignored: values of masks that count for nothing; progress: called with
    (files read, files in all).
    Raises OptionsError for an unknown URI and DataError where fewer than two classes or an empty
    side would be left, with what the check found, and as `survey` does.
    """
    found = survey(
        uri, task=task, seed=seed, cache=cache, faulty=faulty, ignored=ignored, progress=progress
    )
    if found.broken and broken == "error":
        raise DataError(_broken_message(found))
    if found.unfit is not None:
        raise DataError("\n".join((*found.report.lines(), found.unfit)))
    return Loaded(found.manifest, found.report, found.broken)


def survey(
    uri: str,
    *,
    task: TaskName | None = None,
    seed: int,
    cache: Path,
    faulty: Faulty = "clip",
    ignored: frozenset[str] = frozenset(),
    progress: Progress | None = None,
) -> Surveyed:
    """All that can be said of the data before training, arguments as for `load_manifest`.

    Raises OptionsError for an unknown URI and DataError where nothing or one class is listed, or
    an annotation is wrong and `faulty` is `error`.
    """
    listed = read(uri, cache=cache, task=task, ignored=ignored)
    scanned = scan([entry.path for entry in listed.entries], progress=progress)
    examined = examine_annotations(listed, scanned, faulty)
    listing = replace(listed, entries=examined.entries, findings=examined.findings)
    facts = examined.facts
    files = tuple(
        BrokenFile(entry.path, entry.label, fact.problem.kind, fact.problem.reason)
        for entry, fact in zip(listing.entries, facts, strict=True)
        if fact.problem is not None
    )
    samples = assign(listing, facts, seed=seed)
    found = frozenset().union(*(classes_in(sample.truth) for sample in samples))
    # In the order that the source declares, if it does.
    declared = [name for name in listing.classes if name in found]
    classes = tuple(declared or sorted(found))
    manifest = Manifest(listing.name, listing.uri, samples, classes, listing.mask_values)
    return Surveyed(
        manifest=manifest,
        report=check(listing, facts, manifest),
        broken=files,
        unfit=_unfit(manifest, listing, facts, files),
    )


def save_manifest(manifest: Manifest, path: Path) -> None:
    """Writes the manifest as Parquet: path, label, split, group, digest, width, height.

    One row a sample. Name, URI, task, classes and what the pixels of masks stand for are in the
    schema's metadata; boxes and masks are JSON in the column of labels. The file appears whole or
    not at all.
    """
    metadata = {
        "name": manifest.name,
        "uri": manifest.uri,
        "task": manifest.task,
        "classes": json.dumps(manifest.classes),
        "mask_values": values_text(manifest.mask_values),
    }
    samples = manifest.samples
    columns = {
        "path": [str(sample.path) for sample in samples],
        "label": [as_text(sample.truth) for sample in samples],
        "split": [sample.split for sample in samples],
        "group": [sample.group for sample in samples],
        "digest": [sample.digest for sample in samples],
        "width": [sample.width for sample in samples],
        "height": [sample.height for sample in samples],
    }
    table = pa.Table.from_pydict(columns, schema=_SCHEMA.with_metadata(metadata))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as beside:
        pq.write_table(table, beside)


def read_manifest(path: Path) -> Manifest:
    """The saved manifest, as it was; its image files are not looked at. Raises DataError."""
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: no saved manifest can be read there ({error}).") from error
    metadata = table.schema.metadata or {}
    if b"classes" not in metadata or not set(_SCHEMA.names) <= {*table.column_names, *_LATER}:
        raise DataError(
            f"{path}: a Parquet file, but no saved manifest. As a table of paths and labels it "
            "is read by giving it as data."
        )
    task = task_named(metadata.get(b"task", b"").decode())
    samples = tuple(
        Sample(
            Path(row["path"]),
            from_text(task, row["label"]),
            row["digest"],
            row["split"],
            row["group"],
            row.get("width", 0),
            row.get("height", 0),
        )
        # Not all rows at once: as Python's they are larger than the samples.
        for batch in table.to_batches(_ROWS)
        for row in batch.to_pylist()
    )
    return Manifest(
        name=metadata[b"name"].decode(),
        uri=metadata[b"uri"].decode(),
        samples=samples,
        classes=tuple(json.loads(metadata[b"classes"])),
        mask_values=values_from(metadata.get(b"mask_values", b"").decode()),
    )


def _broken_message(found: Surveyed) -> str:
    files = found.broken
    shown = [f"  {file.path}: {file.reason}" for file in files[:_SHOWN_BROKEN]]
    if len(files) > _SHOWN_BROKEN:
        shown.append(f"  … and {len(files) - _SHOWN_BROKEN} more")
    return "\n".join(
        (
            f"{found.manifest.uri}: {len(files)} of {found.report.files} files are broken:",
            *shown,
            "Repair or delete them, or let them be left out (broken=skip).",
        )
    )


def _unfit(
    manifest: Manifest,
    listing: Listing,
    facts: tuple[FileFacts, ...],
    files: tuple[BrokenFile, ...],
) -> str | None:
    # Of objects one kind is enough: they are there or not.
    if len(manifest.classes) < (1 if listing.task == "detection" else 2):
        shown = (classes_in(entry.truth) for entry in listing.entries)
        listed = frozenset(listing.classes).union(*shown)
        because = f" First broken file: {files[0].path}: {files[0].reason}." if files else ""
        return (
            f"{listing.uri}: of {len(listing.entries)} files in "
            f"{len(listed)} classes, "
            f"{len(manifest.samples)} usable ones in {len(manifest.classes)} are left; "
            f"{len(files)} are broken. At least two classes are needed, or one kind of "
            f"object.{because}"
        )
    empty = [split for split in SPLITS if not manifest.side(split)]
    if not empty:
        bare = [split for split in SPLITS if not any(manifest.counts(split).values())]
        if bare:
            missing = "an object" if listing.task == "detection" else "a class"
            return (
                f"{listing.uri}: no image on {' and '.join(bare)} shows {missing}, so nothing "
                "could be learnt or judged there. Give another split or another seed."
            )
    if not empty:
        return None
    seed = covering_seed(listing, facts)
    remedy = "add images, or give a split with all three sides"
    if seed is not None:
        remedy = f"add images, give a split, or use seed={seed}, which leaves no side empty"
    return (
        f"{listing.uri}: no image is left on {' and '.join(empty)} "
        f"({len(manifest.samples)} usable images); {remedy}."
    )
