"""Scores of boxes and masks, as rows and as what other programs read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pycocotools.mask
import pytest
from PIL import Image
from pycocotools.coco import COCO

from sft_mlflow.data.loading import load_manifest
from sft_mlflow.data.manifest import Manifest, Sample
from sft_mlflow.data.pixels import PixelSpec
from sft_mlflow.data.readers import coco
from sft_mlflow.data.truth import Mask
from sft_mlflow.errors import OptionsError
from sft_mlflow.scoring.inputs import find
from sft_mlflow.scoring.score import read_scores, score
from sft_mlflow.sources.model_folder import Calibration, ModelConfig
from sft_mlflow.sources.source_model import Architecture, Preprocessing
from sft_mlflow.tasks import TASKS, exports
from sft_mlflow.tasks.base import Frame, Task
from sft_mlflow.tasks.detection.boxes import Boxes, objects_in, true_boxes
from sft_mlflow.tasks.exports import Row
from sft_mlflow.tasks.segmentation.truth import true_mask

# Of pycocotools' own code under numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NOTHING = Boxes(np.empty((0, 4)), np.empty(0, np.int64), np.empty(0))


class Knowing:
    """A predictor that knows what is true of the images, in the order in which they are asked for.

    In the third image it finds no box.
    """

    def __init__(self, task: Task, manifest: Manifest, samples: Sequence[Sample]) -> None:
        self.task, self._samples, self._asked = task, samples, 0
        self.config = ModelConfig(
            task=task.name,  # type: ignore[arg-type]
            architecture=Architecture("torchvision", "resnet18"),
            preprocessing=Preprocessing(64, "bilinear", (0.5,) * 3, (0.5,) * 3),
            classes=manifest.classes,
            calibration=Calibration(),
            source="made",
            weights_sha256="",
        )
        self.frame = Frame(manifest.classes, PixelSpec(64, "bilinear"), manifest.mask_values)

    def answers(self, pixels: Any, sizes: Sequence[tuple[int, int]]) -> list[Any]:
        some = self._samples[self._asked : self._asked + len(sizes)]
        assert [(sample.width, sample.height) for sample in some] == list(sizes)
        answer: Callable[[Sample], Any] = partial(
            {"detection": self._boxes, "segmentation": self._mask}[self.task.name]
        )
        found = [answer(sample) for sample in some]
        self._asked += len(sizes)
        return found

    def _boxes(self, sample: Sample) -> Boxes:
        return NOTHING if sample is self._samples[2] else true_boxes(sample, self.frame.classes)

    def _mask(self, sample: Sample) -> Any:
        return true_mask(sample, self.frame.classes, self.frame.mask_values)


@dataclass(frozen=True)
class Scored:
    """Six images, one of which is none, and what was made of them."""

    task: Task
    manifest: Manifest
    samples: tuple[Sample, ...]
    folder: Path
    output: Path

    @property
    def rows(self) -> pd.DataFrame:
        return pd.read_parquet(self.output)

    @property
    def good(self) -> pd.DataFrame:
        return self.rows[self.rows["error"].isna()]

    def again(self) -> Any:
        for batch in read_scores(self.output):
            yield from batch.to_pylist()

    def export(self, name: str, path: Path) -> list[int]:
        return list(self.task.answering.exports[name](self.again, self.manifest.classes, path))


@pytest.fixture(scope="module", params=["detection", "segmentation"])
def scored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scored:
    root = tmp_path_factory.mktemp("scored")
    manifest = load_manifest("digits", task=request.param, cache=root / "data").manifest
    samples = manifest.side("test")[:5]
    folder = root / "in"
    for number, sample in enumerate(samples):
        path = folder / ("left", "right")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample.path.read_bytes())
    (folder / "broken.png").write_bytes(b"no image")
    # As they are found: folder by folder.
    samples = tuple(samples[number] for number in (0, 2, 4, 1, 3))
    predictor: Any = Knowing(TASKS[request.param], manifest, samples)
    inputs = find(str(folder), classes=manifest.classes)
    *_, ended = score(predictor, inputs, root / "out.parquet", model_version="scenes/1")
    assert (ended.total, ended.errors) == (6, 1)  # type: ignore[union-attr]
    return Scored(TASKS[request.param], manifest, samples, folder, root / "out.parquet")


def test_rows_say_for_each_image_what_is_in_it(scored: Scored) -> None:
    rows, good = scored.rows, scored.good
    assert rows["path"].nunique() == 6
    broken = rows[rows["error"].notna()]
    assert [Path(path).name for path in broken["path"]] == ["broken.png"]
    if scored.task.name == "detection":
        assert broken[["boxes", "label", "xmin", "width"]].isna().all(axis=None)
        assert (good.groupby("path")["label"].count() == good.groupby("path")["boxes"].max()).all()
        # One row still says that there is nothing.
        assert good[good["boxes"] == 0]["label"].isna().tolist() == [True]
        assert set(good["width"]) == {scored.samples[0].width}
        return
    assert broken["segments"].isna().all()
    for segments in good["segments"]:
        decoded = [
            pycocotools.mask.decode({"size": list(s["size"]), "counts": s["counts"].encode()})
            for s in segments
        ]
        # Every pixel is of one class.
        assert (np.sum(decoded, axis=0) == 1).all()
        assert [int(mask.sum()) for mask in decoded] == [s["pixels"] for s in segments]


def test_pycocotools_reads_the_json_and_finds_the_same(scored: Scored, tmp_path: Path) -> None:
    told = scored.export("coco", tmp_path / "scores.json")
    assert told == [1, 2, 3, 4, 5]
    found = COCO(str(tmp_path / "scores.json"))
    assert [c["name"] for c in found.loadCats(found.getCatIds())] == list(scored.manifest.classes)
    images = found.loadImgs(found.getImgIds())
    assert [image["file_name"] for image in images] == [
        "left/0.png", "left/2.png", "left/4.png", "right/1.png", "right/3.png",
    ]  # fmt: skip
    for image, sample in zip(images, scored.samples, strict=True):
        assert (image["width"], image["height"]) == (sample.width, sample.height)
        annotations = found.loadAnns(found.getAnnIds(imgIds=image["id"]))
        names = [found.cats[one["category_id"]]["name"] for one in annotations]
        rows = scored.good[scored.good["path"] == str(scored.folder / image["file_name"])]
        if scored.task.name == "detection":
            assert names == rows["label"].dropna().tolist()
            corners = [[b["bbox"][0], b["bbox"][0] + b["bbox"][2]] for b in annotations]
            wanted = rows[["xmin", "xmax"]].dropna().to_numpy().reshape(-1, 2)
            assert np.allclose(np.reshape(corners, (-1, 2)), wanted)
            assert all(one["score"] == 1 for one in annotations)
            continue
        truth = true_mask(sample, scored.manifest.classes, scored.manifest.mask_values)
        for name, annotation in zip(names, annotations, strict=True):
            mask = truth == scored.manifest.classes.index(name)
            assert np.array_equal(found.annToMask(annotation), mask)
            assert annotation["area"] == mask.sum()
            left, top, width, height = map(int, annotation["bbox"])
            assert mask[top : top + height, left : left + width].sum() == mask.sum()


def test_the_json_is_data_for_a_study_once_someone_has_corrected_it(
    scored: Scored, tmp_path: Path
) -> None:
    scored.export("coco", scored.folder / "scores.json")
    task: Any = scored.task.name
    uri = str(scored.folder / "scores.json")
    listing = coco.read(uri, cache=tmp_path, task=task, ignored=frozenset())
    assert not listing.findings
    known = scored.manifest.classes
    for entry, sample in zip(listing.entries, scored.samples, strict=True):
        if isinstance(entry.truth, Mask):
            # The reader has a class for what no annotation covers, here the first.
            expected = true_mask(sample, known, scored.manifest.mask_values)
            assert listing.classes == known
            assert np.array_equal(np.asarray(Image.open(entry.truth.path)), expected)
        elif entry.truth:
            boxes, truth = (
                sorted((box.label, round(box.xmin, 6), round(box.ymax, 6)) for box in some)
                for some in (entry.truth, objects_in(sample))
            )
            assert boxes == truth
        else:
            assert sample is scored.samples[2]


def test_masks_are_palette_images_of_class_indices(scored: Scored, tmp_path: Path) -> None:
    if scored.task.name == "detection":
        assert "masks" not in scored.task.answering.exports
        return
    assert scored.export("masks", tmp_path / "masks") == [1, 2, 3, 4, 5]
    assert (tmp_path / "masks" / "classes.txt").read_text().split() == list(scored.manifest.classes)
    names = sorted(path.relative_to(tmp_path / "masks") for path in tmp_path.rglob("*.png"))
    assert [str(name) for name in names] == [
        "left/0.png", "left/2.png", "left/4.png", "right/1.png", "right/3.png",
    ]  # fmt: skip
    for name, sample in zip(names, scored.samples, strict=True):
        with Image.open(tmp_path / "masks" / name) as mask:
            assert mask.mode == "P"
            truth = true_mask(sample, scored.manifest.classes, scored.manifest.mask_values)
            assert np.array_equal(np.asarray(mask), truth)
            colours = {tuple(c) for c in np.asarray(mask.convert("RGB")).reshape(-1, 3)}
            assert len(colours) == len(np.unique(truth))


def test_masks_of_one_name_are_not_laid_over_each_other(tmp_path: Path) -> None:
    segment = {"label": "a", "pixels": 4, "size": [2, 2], "counts": "04"}
    rows: list[Row] = [
        {"path": f"/in/one{suffix}", "error": None, "segments": [segment]}
        for suffix in (".png", ".jpg")
    ]
    write = TASKS["segmentation"].answering.exports["masks"]
    with pytest.raises(OptionsError, match=r"two images would have the mask one\.png"):
        list(write(lambda: rows, ("a",), tmp_path / "masks"))
    assert not (tmp_path / "masks" / exports.CLASSES).exists()


def test_classes_have_no_other_form() -> None:
    assert dict(TASKS["classification"].answering.exports) == {}
