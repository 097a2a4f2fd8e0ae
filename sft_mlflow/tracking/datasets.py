"""Image data sets for MLflow: `mlflow.data.from_image_folder` and its like, and the study's.

MLflow imports this module at `import mlflow`: whatever is heavy is imported where it is used. It
also looks at the constructors' annotations as classes, so `from __future__ import annotations`
must stay away.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.data.dataset import Dataset
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.pyfunc_dataset_mixin import PyFuncConvertibleDatasetMixin

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.data.evaluation_dataset import EvaluationDataset
    from mlflow.data.pyfunc_dataset_mixin import PyFuncInputsOutputs
    from mlflow.types import Schema

    from sft_mlflow.data.manifest import Manifest
    from sft_mlflow.data.truth import MaskValues, TaskName, Truth

# MLflow's column holds 36 characters and its screens show all of them.
DIGEST_LENGTH = 16


class ImageDatasetSource(DatasetSource):
    """Where labelled images come from: a folder, a table of paths, or a data set known by name."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @staticmethod
    def _get_source_type() -> str:
        return "sft_images"

    def load(self) -> str:
        """The folder, table or name, as it is given to `data` of a study."""
        return self.uri

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        # Any folder could be one of images: to say yes to a path would take every local folder
        # and file away from MLflow's own sources.
        return False

    @classmethod
    def _resolve(cls, raw_source: Any) -> "ImageDatasetSource":
        return cls(str(raw_source))

    def to_dict(self) -> dict[str, Any]:
        """`uri`."""
        return {"uri": self.uri}

    @classmethod
    def from_dict(cls, source_dict: Mapping[Any, Any]) -> "ImageDatasetSource":
        """The source whose `to_dict` this is."""
        return cls(source_dict["uri"])


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One image. digest: of its content; split: None where unknown."""

    path: Path
    digest: str
    truth: "Truth"
    split: str | None


class ImageDataset(Dataset, PyFuncConvertibleDatasetMixin):
    """Labelled images as MLflow shows a data set: name, digest, source, schema and profile."""

    def __init__(
        self,
        rows: Sequence[ImageRow],
        source: ImageDatasetSource,
        name: str | None = None,
        digest: str | None = None,
        mask_values: "MaskValues | None" = None,
    ) -> None:
        """mask_values: what the pixels of masks stand for, where the truth are masks."""
        self._rows = tuple(rows)
        self._mask_values = mask_values
        super().__init__(source=source, name=name, digest=digest)

    def _compute_digest(self) -> str:
        from sft_mlflow.data.truth import identity

        lines = sorted(f"{r.digest}\t{r.split or ''}\t{identity(r.truth)}" for r in self._rows)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:DIGEST_LENGTH]

    @property
    def profile(self) -> dict[str, Any]:
        """`num_rows`, `num_classes`, and images by class and by side of the split."""
        from sft_mlflow.data.truth import classes_in

        labels = Counter(name for row in self._rows for name in classes_in(row.truth))
        splits = Counter(row.split for row in self._rows if row.split is not None)
        return {
            "num_rows": len(self._rows),
            "num_classes": len(labels),
            "images_by_class": dict(sorted(labels.items())),
            "images_by_split": dict(sorted(splits.items())),
        }

    @property
    def schema(self) -> "Schema":
        """`image`, binary, and what is true of it, string: see `targets`."""
        from mlflow.types import ColSpec, Schema

        return Schema([ColSpec("binary", "image"), ColSpec("string", self.targets)])

    @property
    def targets(self) -> str:
        """The column of what is true: `label`, or `boxes` or `segments` as JSON."""
        from sft_mlflow.data.truth import task_of

        task = task_of(row.truth for row in self._rows)
        return {"detection": "boxes", "segmentation": "segments"}.get(task, "label")

    def to_dict(self) -> dict[str, str]:
        """Name, digest, source, source type, schema and profile, the last two as JSON."""
        return {
            **super().to_dict(),
            "schema": json.dumps({"mlflow_colspec": self.schema.to_dict()}),
            "profile": json.dumps(self.profile),
        }

    def frame(self) -> "pd.DataFrame":
        """One row an image: `path` and the targets, in reading order."""
        import pandas as pd

        return pd.DataFrame(
            {
                "path": [str(row.path) for row in self._rows],
                self.targets: [self._target(row.truth) for row in self._rows],
            }
        )

    def _target(self, truth: "Truth") -> str:
        """As evaluators take it."""
        if isinstance(truth, str):
            return truth
        if isinstance(truth, tuple):
            corners = ("label", "xmin", "ymin", "xmax", "ymax")
            return json.dumps([{name: getattr(box, name) for name in corners} for box in truth])
        from sft_mlflow.data.masks import IGNORED, read_mask
        from sft_mlflow.tasks.segmentation.answering import segments

        assert self._mask_values is not None
        classes = sorted(set(self._mask_values.classes.values()))
        found = read_mask(truth.path, self._mask_values, classes)
        # What counts for nothing is in no segment.
        return json.dumps(segments(found, classes, but=IGNORED))

    def to_pyfunc(self) -> "PyFuncInputsOutputs":
        """Paths as inputs and what is true as outputs."""
        from mlflow.data.pyfunc_dataset_mixin import PyFuncInputsOutputs

        frame = self.frame()
        return PyFuncInputsOutputs([frame[["path"]]], [frame[self.targets]])

    def to_evaluation_dataset(
        self, path: str | None = None, feature_names: list[str] | None = None
    ) -> "EvaluationDataset":
        """What `mlflow.models.evaluate(model, this, model_type=...)` takes."""
        from mlflow.data.evaluation_dataset import EvaluationDataset

        # MLflow's class has no annotations.
        return EvaluationDataset(  # type: ignore[no-untyped-call]
            self.frame(),
            targets=self.targets,
            path=path,
            feature_names=feature_names,
            name=self.name,
            digest=self.digest,
        )


def from_image_folder(
    path: str | Path, name: str | None = None, digest: str | None = None
) -> ImageDataset:
    """The data set of a folder of class folders, with or without train, valid and test above them.

    digest: by default of the files' content, labels and sides; every file is read for it.
    Raises DataError for a folder without images or with a single class.
    """
    return _listed(path, name, digest)


def from_image_table(
    path: str | Path, name: str | None = None, digest: str | None = None
) -> ImageDataset:
    """The data set of a CSV, TSV or Parquet table: path, label and, if any, split and group.

    digest: by default of the files' content, labels and sides; every file is read for it.
    Raises DataError that names the wrong rows.
    """
    return _listed(path, name, digest)


def from_annotated_images(
    path: str | Path,
    name: str | None = None,
    digest: str | None = None,
    task: str | None = None,
) -> ImageDataset:
    """The data set of images with boxes or masks, in any layout that a study reads.

    task: `detection` or `segmentation` where the layout is for both, else detection. digest: by
    default of the files' content, annotations and sides; every file is read for it.
    Raises OptionsError for another layout, DataError for wrong annotations.
    """
    from sft_mlflow.data.readers import task_for
    from sft_mlflow.data.truth import task_named
    from sft_mlflow.errors import OptionsError

    if task not in (None, "detection", "segmentation"):
        raise OptionsError(f"task: {task!r} is neither 'detection' nor 'segmentation'.")
    found = task_for(str(path), None if task is None else task_named(task))
    if found == "classification":
        raise OptionsError(f"{path}: has neither boxes nor masks. Take from_image_folder.")
    return _read(str(path), found, name, digest)


def dataset_of(manifest: "Manifest") -> ImageDataset:
    """The manifest as MLflow shows it; its digest is the start of the manifest's own."""
    rows = [ImageRow(s.path, s.digest, s.truth, s.split) for s in manifest.samples]
    source = ImageDatasetSource(manifest.uri)
    digest = manifest.digest[:DIGEST_LENGTH]
    return ImageDataset(rows, source, manifest.name, digest, manifest.mask_values)


def _listed(path: str | Path, name: str | None, digest: str | None) -> ImageDataset:
    from sft_mlflow.data.readers import folder, table
    from sft_mlflow.errors import OptionsError

    uri = str(path)
    if not folder.tasks(uri) and not table.tasks(uri):
        raise OptionsError(f"{uri}: no folder and no .csv, .tsv or .parquet file. Check the path.")
    return _read(uri, "classification", name, digest)


def _read(uri: str, task: "TaskName", name: str | None, digest: str | None) -> ImageDataset:
    from sft_mlflow.data.annotations import examine_annotations
    from sft_mlflow.data.images import BrokenImageError, read_bytes
    from sft_mlflow.data.ordered import THREADS, ordered_map
    from sft_mlflow.data.readers import read
    from sft_mlflow.data.scan import scan
    from sft_mlflow.home import home

    def content(file: Path) -> str:
        try:
            return hashlib.sha256(read_bytes(file)).hexdigest()
        except BrokenImageError:
            # A missing file is part of what is listed; a study finds and reports it.
            return ""

    listing = read(uri, cache=home() / "data", task=task)
    paths = [entry.path for entry in listing.entries]
    if task != "classification":
        # Boxes may be shares of the image, and what a mask shows is known when it was read.
        facts = scan(paths)
        listing = replace(listing, entries=examine_annotations(listing, facts, "clip").entries)
        digests = [fact.digest for fact in facts]
    elif digest is None:
        digests = list(ordered_map(content, paths, ahead=4 * THREADS))
    else:
        digests = [""] * len(paths)
    rows = [
        ImageRow(entry.path, found, entry.truth, entry.split)
        for entry, found in zip(listing.entries, digests, strict=True)
    ]
    source = ImageDatasetSource(listing.uri)
    return ImageDataset(rows, source, name or listing.name, digest, listing.mask_values)
