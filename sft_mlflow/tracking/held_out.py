"""The images that a promotion is decided on: which they are, and what a model says of them."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sft_mlflow.data.annotations import examine_annotations
from sft_mlflow.data.images import read_bytes
from sft_mlflow.data.loading import read_manifest
from sft_mlflow.data.manifest import Manifest, Sample
from sft_mlflow.data.ordered import THREADS, ordered_map
from sft_mlflow.data.pixels import shown
from sft_mlflow.data.readers import read
from sft_mlflow.data.scan import scan
from sft_mlflow.data.truth import TaskName, classes_in
from sft_mlflow.errors import DataError, TrackingError
from sft_mlflow.tasks.base import Answer, Evidence, Frame
from sft_mlflow.tasks.evidence import gathered
from sft_mlflow.tasks.predictor import Predictor

MANIFEST = "manifest.parquet"
# Digests of what the sources of a model, if they were made here, were trained and chosen on.
ANCESTORS = "ancestors.json"


@dataclass(frozen=True)
class HeldOut:
    """Test images. broken: listed files that give no pixels, left out of the manifest."""

    manifest: Manifest
    broken: int = 0


@dataclass(frozen=True)
class Unseen:
    """What is left of the test images after those that a model was trained on.

    manifest: of the images that count; kept: their positions among all test images;
    seen_by_challenger, seen_by_champion: images left out, where both saw one it counts in both.
    """

    manifest: Manifest
    kept: NDArray[np.int64]
    seen_by_challenger: int
    seen_by_champion: int


def own_test_side(folder: Path) -> HeldOut:
    """The test side of the data that the model in the folder was made from."""
    manifest = _manifest(folder)
    return HeldOut(_of(manifest, manifest.side("test")))


def given_test_data(
    uri: str, *, task: TaskName, cache: Path, ignored: frozenset[str] = frozenset()
) -> HeldOut:
    """The images behind a URI that is given as test data.

    The test side, where the source has sides (a saved manifest, a column split, a test folder);
    else all of it. Broken files are left out and counted. Raises DataError where none is left.
    """
    listed = read(uri, cache=cache, task=task, ignored=ignored)
    sided = any(entry.split is not None for entry in listed.entries)
    tests = tuple(e for e in listed.entries if e.split == "test" or not sided)
    if not tests:
        raise DataError(
            f"{listed.uri}: its images have sides, and none of them is on test. Put some there, or "
            "say nothing of sides."
        )
    listing = replace(listed, entries=tests)
    examined = examine_annotations(listing, scan([entry.path for entry in tests]), "clip")
    entries, facts = examined.entries, examined.facts
    samples = tuple(
        Sample(entry.path, entry.truth, fact.digest, "test", entry.group, fact.width, fact.height)
        for entry, fact in zip(entries, facts, strict=True)
        if fact.problem is None
    )
    if not samples:
        raise DataError(
            f"{listing.uri}: {len(entries)} test images are listed and none can be read. Give data "
            "with readable images on its test side."
        )
    manifest = Manifest(listing.name, listing.uri, samples, (), listing.mask_values)
    return HeldOut(_of(manifest, samples), broken=len(entries) - len(samples))


def trained_on(folder: Path) -> frozenset[str]:
    """SHA-256 of each image that the model in the folder, or one that it came from, learnt on."""
    own = frozenset(s.digest for s in _manifest(folder).samples if s.split != "test")
    path = folder / ANCESTORS
    return own.union(json.loads(path.read_text())) if path.exists() else own


def require_known(manifest: Manifest, classes: Sequence[str], who: str) -> None:
    """Raises DataError where an image is of a class that the model does not know."""
    unknown = [name for name in manifest.classes if name not in classes]
    if not unknown:
        return
    near = difflib.get_close_matches(unknown[0], classes, n=1)
    hint = f"; nearest is {near[0]!r}" if near else ""
    raise DataError(
        f"{manifest.uri}: holds {len(unknown)} classes that {who} does not know, as "
        f"{unknown[0]!r}{hint}. Fix the labels, or give test data of the model's own classes."
    )


def unseen(
    held_out: HeldOut, challenger_saw: frozenset[str], champion_saw: frozenset[str]
) -> Unseen:
    """The test images that neither model was trained on. Raises DataError where none is left."""
    manifest = held_out.manifest
    digests = [sample.digest for sample in manifest.samples]
    by_challenger = sum(digest in challenger_saw for digest in digests)
    by_champion = sum(digest in champion_saw for digest in digests)
    seen = challenger_saw | champion_saw
    kept = [at for at, digest in enumerate(digests) if digest not in seen]
    if not kept:
        raise DataError(
            f"{manifest.uri}: of {len(digests)} test images the challenger was trained on "
            f"{by_challenger} and the champion on {by_champion}; none is left. Give other data."
        )
    samples = tuple(manifest.samples[at] for at in kept)
    return Unseen(
        _of(manifest, samples),
        np.array(kept, np.int64),
        by_challenger,
        by_champion,
    )


def answers(predictor: Predictor, samples: Sequence[Sample]) -> Iterator[list[Answer]]:
    """What a model says of the samples, in their order, some at a time.

    Memory holds the pixels of a few batches. Raises DataError for a file that is gone or no longer
    the one with the sample's digest.
    """
    spec = predictor.frame.pixels

    def read(sample: Sample) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        data = read_bytes(sample.path)
        if hashlib.sha256(data).hexdigest() != sample.digest:
            raise DataError(
                f"{sample.path}: is no longer the test image it was (its SHA-256 changed). "
                "Restore it, or give other test data."
            )
        return shown(data, spec)

    decoded = ordered_map(read, samples, threads=THREADS, ahead=2 * spec.together)
    while batch := list(islice(decoded, spec.together)):
        pixels, sizes = zip(*batch, strict=True)
        yield predictor.answers(np.stack(pixels), sizes)


def evidence(predictor: Predictor, samples: Sequence[Sample], frame: Frame) -> Evidence:
    """Evidence of a model's answers to the samples, in their order, as its task keeps it.

    frame: what the answers are compared with. Raises DataError as `answers` does.
    """
    remaining = iter(samples)
    told = ((some, list(islice(remaining, len(some)))) for some in answers(predictor, samples))
    return gathered(predictor.task.judging, told, frame)


def _manifest(folder: Path) -> Manifest:
    if not (folder / MANIFEST).is_file():
        raise TrackingError(
            f"{folder}: the model has no {MANIFEST}, so it is not known which images it was "
            "trained on. Promote a model that `finetune` made."
        )
    return read_manifest(folder / MANIFEST)


def _of(manifest: Manifest, samples: tuple[Sample, ...]) -> Manifest:
    """The manifest of those samples alone, with the classes that they show."""
    shown = frozenset[str]().union(*(classes_in(sample.truth) for sample in samples))
    return replace(manifest, samples=samples, classes=tuple(sorted(shown)))
