"""Scores of boxes and masks, as rows and as what other programs read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
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
from sft_mlflow.scoring.exports import targets, write
from sft_mlflow.scoring.inputs import Inputs, find
from sft_mlflow.scoring.score import score
from sft_mlflow.sources.model_folder import Calibration, ModelConfig
from sft_mlflow.sources.source_model import Architecture, Preprocessing
from sft_mlflow.tasks import TASKS
from sft_mlflow.tasks.base import Answer, Frame, Task
from sft_mlflow.tasks.detection.boxes import Boxes, objects_in
from sft_mlflow.tasks.exports import MARK
from sft_mlflow.tasks.segmentation.truth import true_mask
from tests.contract.test_tasks import ANSWERS

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
        self._asked += len(sizes)
        return [self._answer(sample) for sample in some]

    def _answer(self, sample: Sample) -> Answer:
        if self.task.name == "detection" and sample is self._samples[2]:
            return NOTHING
        right, _ = ANSWERS[self.task.name]
        return right(sample, self.frame)


@dataclass(frozen=True)
class Scored:
    """Six images, one of which is none, and what was made of them."""

    task: Task
    manifest: Manifest
    samples: tuple[Sample, ...]
    folder: Path
    inputs: Inputs
    output: Path

    @property
    def rows(self) -> pd.DataFrame:
        return pd.read_parquet(self.output)

    @property
    def good(self) -> pd.DataFrame:
        return self.rows[self.rows["error"].isna()]

    def export(self, name: str, path: Path) -> list[int]:
        return written(self.task, {name: str(path)}, self.inputs, self.output)


def written(task: Task, asked: dict[str, str], inputs: Inputs, output: Path) -> list[int]:
    """What the exports told, one after the other."""
    classes = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    if task.name == "segmentation":
        classes = ("background", *classes)
    found = targets(asked, task, inputs, output, overwrite=False)
    return [done for target in found for done in write(target, inputs, output, classes)]


@pytest.fixture(scope="module", params=["detection", "segmentation"])
def scored(
    request: pytest.FixtureRequest, digits_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Scored:
    root = tmp_path_factory.mktemp("scored")
    manifest = load_manifest("digits", task=request.param, cache=digits_cache).manifest
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
    return Scored(TASKS[request.param], manifest, samples, folder, inputs, root / "out.parquet")


def assert_whole(segments: Sequence[Mapping[str, Any]]) -> None:
    """That every pixel is of one class, as pycocotools reads them."""
    decoded = [
        pycocotools.mask.decode({"size": list(s["size"]), "counts": s["counts"].encode()})
        for s in segments
    ]
    assert (np.sum(decoded, axis=0) == 1).all()
    assert [int(mask.sum()) for mask in decoded] == [s["pixels"] for s in segments]


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
        assert_whole(segments)


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


def test_masks_that_somebody_corrected_are_replaced_only_when_told(
    scored: Scored, tmp_path: Path
) -> None:
    if scored.task.name == "detection":
        return
    scored.export("masks", tmp_path / "masks")
    corrected = tmp_path / "masks" / "left" / "2.png"
    written_last = (tmp_path / "masks" / MARK).stat().st_mtime_ns
    os.utime(corrected, ns=(written_last + 1, written_last + 1))
    asked = {"masks": str(tmp_path / "masks")}
    with pytest.raises(OptionsError, match=r"2\.png is newer .* --overwrite yes"):
        targets(asked, scored.task, scored.inputs, scored.output, overwrite=False)
    assert targets(asked, scored.task, scored.inputs, scored.output, overwrite=True)


def test_a_json_that_somebody_corrected_is_replaced_only_when_told(
    scored: Scored, tmp_path: Path
) -> None:
    path = tmp_path / "scores.json"
    scored.export("coco", path)
    # By one character, in an editor.
    path.write_text(path.read_text().replace('"image_id": 1,', '"image_id": 2,', 1))
    asked = {"coco": str(path)}
    with pytest.raises(OptionsError, match="replaced only with --overwrite yes"):
        targets(asked, scored.task, scored.inputs, scored.output, overwrite=False)
    assert targets(asked, scored.task, scored.inputs, scored.output, overwrite=True)


@pytest.mark.parametrize("name", ["coco", "masks"])
def test_the_same_export_is_made_again_and_other_things_are_kept(
    name: str, scored: Scored, tmp_path: Path
) -> None:
    if name not in scored.task.answering.exports:
        return
    path = tmp_path / "scores.json" if name == "coco" else tmp_path / "masks"
    scored.export(name, path)
    if name == "masks":
        # Of an image that is gone.
        (path / "left" / "stale.png").write_bytes(b"")
        os.utime(path / "left" / "stale.png", (0, 0))
    scored.export(name, path)
    assert not (path / "left" / "stale.png").exists()
    own = tmp_path / "own"
    if name == "coco":
        own.write_text('{"images": []}')
    else:
        own.mkdir()
        (own / "picture.png").write_bytes(b"mine")
    for overwrite in (False, True):
        asked = {name: str(own)}
        if overwrite and name == "coco":
            assert targets(asked, scored.task, scored.inputs, scored.output, overwrite=True)
            continue
        with pytest.raises(OptionsError, match="Choose another path"):
            targets(asked, scored.task, scored.inputs, scored.output, overwrite=overwrite)


def test_every_path_that_cannot_be_written_to_is_named_at_once(
    scored: Scored, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    asked = {"coco": str(scored.output), "masks": str(tmp_path / "file")}
    with pytest.raises(OptionsError) as refused:
        targets(asked, scored.task, scored.inputs, scored.output, overwrite=True)
    said = str(refused.value).splitlines()
    assert len(said) == 2
    assert "is written to already" in said[0]
    other = "is a file" if scored.task.name == "segmentation" else "have no such form"
    assert other in said[1]


def test_what_is_killed_leaves_no_export(scored: Scored, tmp_path: Path) -> None:
    name = "masks" if scored.task.name == "segmentation" else "coco"
    (target,) = targets(
        {name: str(tmp_path / "here")}, scored.task, scored.inputs, scored.output, overwrite=False
    )
    told = write(target, scored.inputs, scored.output, scored.manifest.classes)
    next(told)
    told.close()  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir()) == []


def rows_of(paths: Sequence[str], error: str | None = None) -> pa.Table:
    segment = {"label": "background", "pixels": 4, "size": [2, 2], "counts": "04"}
    segments = None if error else [segment]
    rows = [{"path": path, "error": error, "segments": segments} for path in paths]
    return pa.Table.from_pylist(
        rows,
        schema=pa.schema(
            [
                ("path", pa.string()),
                ("error", pa.string()),
                *TASKS["segmentation"].answering.columns(()),
            ]
        ),
    )


class TestPaths:
    """Of a table, whose images may lie anywhere."""

    def export(
        self, folder: Path, paths: Sequence[str], name: str, error: str | None = None
    ) -> Any:
        pq.write_table(rows_of(paths, error), folder / "out.parquet")
        table = folder / "lists" / "list.csv"
        table.parent.mkdir()
        table.write_text("path\n" + "".join(f"{path}\n" for path in paths))
        inputs = find(str(table), classes=())
        path = folder / "exported" / ("a.json" if name == "coco" else "masks")
        written(TASKS["segmentation"], {name: str(path)}, inputs, folder / "out.parquet")
        if name == "coco":
            return [image["file_name"] for image in json.loads(path.read_text())["images"]]
        return sorted(str(p.relative_to(path)) for p in path.rglob("*.png"))

    def test_masks_of_one_name_are_not_laid_over_each_other(self, tmp_path: Path) -> None:
        with pytest.raises(
            OptionsError, match=r"one\.png and /in/one\.jpg would have the same file"
        ):
            self.export(tmp_path, ["/in/one.png", "/in/one.jpg"], "masks")
        assert not (tmp_path / "exported").exists()

    def test_an_image_that_is_listed_twice_has_one_mask(self, tmp_path: Path) -> None:
        assert self.export(tmp_path, ["/in/a.png", "/in/a.png"], "masks") == ["a.png"]

    @pytest.mark.parametrize("name", ["coco", "masks"])
    def test_detours_in_paths_lead_nowhere_else(self, name: str, tmp_path: Path) -> None:
        paths = [f"{tmp_path}/lists/../images/a.png", f"{tmp_path}/lists/b.png"]
        assert self.export(tmp_path, paths, name) == ["images/a.png", "lists/b.png"]

    def test_names_start_at_the_folder_of_the_json_where_all_images_are_below(
        self, tmp_path: Path
    ) -> None:
        paths = [f"{tmp_path}/exported/images/{name}.png" for name in "ab"]
        assert self.export(tmp_path, paths, "coco") == ["images/a.png", "images/b.png"]

    @pytest.mark.parametrize("name", ["coco", "masks"])
    def test_images_that_cannot_be_read_are_in_no_export(self, name: str, tmp_path: Path) -> None:
        assert self.export(tmp_path, ["/in/a.png"], name, error="no image") == []


def test_classes_have_no_other_form(tmp_path: Path) -> None:
    assert dict(TASKS["classification"].answering.exports) == {}
    with pytest.raises(OptionsError, match="scores of classification have no such form"):
        targets(
            {"coco": "a.json"},
            TASKS["classification"],
            find(str(tmp_path), classes=()),
            tmp_path / "out",
            overwrite=True,
        )
