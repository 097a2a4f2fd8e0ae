"""Image data sets for MLflow: `mlflow.data.from_image_folder`, `from_image_table`, and the study's.

MLflow imports this module at `import mlflow`: whatever is heavy is imported where it is used. It
also looks at the constructors' annotations as classes, so `from __future__ import annotations`
must stay away.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """One image. digest: of its content; label and split: None where unknown."""

    path: Path
    digest: str
    label: str | None
    split: str | None


class ImageDataset(Dataset, PyFuncConvertibleDatasetMixin):
    """Labelled images as MLflow shows a data set: name, digest, source, schema and profile."""

    def __init__(
        self,
        rows: Sequence[ImageRow],
        source: ImageDatasetSource,
        name: str | None = None,
        digest: str | None = None,
    ) -> None:
        self._rows = tuple(rows)
        super().__init__(source=source, name=name, digest=digest)

    def _compute_digest(self) -> str:
        lines = sorted(f"{r.digest}\t{r.split or ''}\t{r.label or ''}" for r in self._rows)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:DIGEST_LENGTH]

    @property
    def profile(self) -> dict[str, Any]:
        """`num_rows`, `num_classes`, and images by class and by side of the split."""
        labels = Counter(row.label for row in self._rows if row.label is not None)
        splits = Counter(row.split for row in self._rows if row.split is not None)
        return {
            "num_rows": len(self._rows),
            "num_classes": len(labels),
            "images_by_class": dict(sorted(labels.items())),
            "images_by_split": dict(sorted(splits.items())),
        }

    @property
    def schema(self) -> "Schema":
        """`image`, binary, and `label`, string."""
        from mlflow.types import ColSpec, Schema

        return Schema([ColSpec("binary", "image"), ColSpec("string", "label")])

    def to_dict(self) -> dict[str, str]:
        """Name, digest, source, source type, schema and profile, the last two as JSON."""
        return {
            **super().to_dict(),
            "schema": json.dumps({"mlflow_colspec": self.schema.to_dict()}),
            "profile": json.dumps(self.profile),
        }

    def frame(self) -> "pd.DataFrame":
        """One row an image: `path` and `label`, in reading order."""
        import pandas as pd

        return pd.DataFrame(
            {
                "path": [str(row.path) for row in self._rows],
                "label": [row.label for row in self._rows],
            }
        )

    def to_pyfunc(self) -> "PyFuncInputsOutputs":
        """Paths as inputs and labels as outputs."""
        from mlflow.data.pyfunc_dataset_mixin import PyFuncInputsOutputs

        frame = self.frame()
        return PyFuncInputsOutputs([frame[["path"]]], [frame["label"]])

    def to_evaluation_dataset(
        self, path: str | None = None, feature_names: list[str] | None = None
    ) -> "EvaluationDataset":
        """What `mlflow.models.evaluate(model, this, model_type="image-classification")` takes."""
        from mlflow.data.evaluation_dataset import EvaluationDataset

        # MLflow's class has no annotations.
        return EvaluationDataset(  # type: ignore[no-untyped-call]
            self.frame(),
            targets="label",
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


def dataset_of(manifest: "Manifest") -> ImageDataset:
    """The manifest as MLflow shows it; its digest is the start of the manifest's own."""
    rows = [ImageRow(s.path, s.digest, s.label, s.split) for s in manifest.samples]
    source = ImageDatasetSource(manifest.uri)
    return ImageDataset(rows, source, manifest.name, manifest.digest[:DIGEST_LENGTH])


def _listed(path: str | Path, name: str | None, digest: str | None) -> ImageDataset:
    from sft_mlflow.data.images import BrokenImageError, read_bytes
    from sft_mlflow.data.ordered import THREADS, ordered_map
    from sft_mlflow.data.readers import folder, read, table
    from sft_mlflow.errors import OptionsError

    uri = str(path)
    if not folder.tasks(uri) and not table.tasks(uri):
        raise OptionsError(f"{uri}: no folder and no .csv, .tsv or .parquet file. Check the path.")

    def content(file: Path) -> str:
        try:
            return hashlib.sha256(read_bytes(file)).hexdigest()
        except BrokenImageError:
            # A missing file is part of what is listed; a study finds and reports it.
            return ""

    # Neither reader writes anything, so the cache is never touched.
    listing = read(uri, cache=Path(), task="classification")
    if digest is None:
        digests = list(ordered_map(content, [e.path for e in listing.entries], ahead=4 * THREADS))
    else:
        digests = [""] * len(listing.entries)
    rows = [
        ImageRow(entry.path, found, entry.label, entry.split)
        for entry, found in zip(listing.entries, digests, strict=True)
    ]
    return ImageDataset(rows, ImageDatasetSource(listing.uri), name or listing.name, digest)
