"""What becomes of models for boxes and masks: served, evaluated, scored with, promoted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.models import Model
from PIL import Image

from sft_mlflow.data.loading import load_manifest, save_manifest
from sft_mlflow.data.manifest import Manifest
from sft_mlflow.data.readers.scenes import scenes
from sft_mlflow.data.truth import Mask
from sft_mlflow.errors import DataError, OptionsError
from sft_mlflow.scoring.inputs import find
from sft_mlflow.scoring.score import score
from sft_mlflow.sources import model_folder, weights
from sft_mlflow.sources.model_folder import Calibration, ModelConfig
from sft_mlflow.sources.uri import resolve
from sft_mlflow.tasks import TASKS
from sft_mlflow.tasks.base import Frame
from sft_mlflow.tasks.predictor import Predictor
from sft_mlflow.tasks.segmentation.truth import true_mask
from sft_mlflow.tracking import held_out, messages, packaging
from sft_mlflow.tracking.datasets import dataset_of
from sft_mlflow.tracking.gate import FEW_IMAGES, Contestant, Gate, compare, judge
from tests.contract.test_tasks import ANSWERS
from tests.scoring.test_boxes_and_masks import assert_whole

MASK_TASKS = ("detection", "segmentation")


@dataclass(frozen=True)
class Made:
    """A model with a head that learnt a little, and what it was made from."""

    task: str
    manifest: Manifest
    folder: Path
    packaged: str
    target: str

    @property
    def model_type(self) -> str:
        return TASKS[self.task].model_type

    def frame(self, config: ModelConfig) -> Frame:
        return Frame.of_model(config, self.manifest)


@pytest.fixture(scope="module", params=MASK_TASKS)
def made(
    request: pytest.FixtureRequest, digits_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Made:
    root = tmp_path_factory.mktemp(request.param)
    whole = load_manifest("digits", task=request.param, cache=digits_cache).manifest
    taken = [s for side in ("train", "valid", "test") for s in whole.side(side)[:16]]  # type: ignore[arg-type]
    manifest = replace(whole, samples=tuple(taken))
    task, source = TASKS[request.param], resolve("embedded://efficientnet_lite0")
    torch.manual_seed(0)
    staged = task.building.network(source, len(manifest.classes))
    preprocessing = task.building.preprocessing(source, manifest.samples, 64)
    state_dict = staged.model.state_dict()
    config = ModelConfig(
        task=request.param,
        architecture=source.architecture,
        preprocessing=preprocessing,
        classes=manifest.classes,
        # Of a head that knows nothing, no box is sure.
        calibration=Calibration(least_score=0.06 if request.param == "detection" else 0.0),
        source=source.uri,
        weights_sha256=weights.digest(state_dict),
    )
    if request.param == "detection":
        with torch.no_grad():
            # Else nothing reaches even the lowest score.
            staged.head.fcos.head.classification_head.cls_logits.bias.add_(3)
        state_dict = staged.model.state_dict()
        config = replace(config, weights_sha256=weights.digest(state_dict))
    model_folder.write(root / "model", config, state_dict)
    save_manifest(manifest, root / "model" / "manifest.parquet")
    example = manifest.samples[0].path.read_bytes()
    packaging.package(root / "model", example, Model(), root / "packaged")
    target = {"detection": "boxes", "segmentation": "segments"}[request.param]
    return Made(request.param, manifest, root / "model", str(root / "packaged"), target)


@pytest.fixture
def active(client: MlflowClient, experiment_id: str) -> Iterator[str]:
    with mlflow.start_run(experiment_id=experiment_id) as run:
        yield run.info.run_id


@pytest.fixture(scope="module")
def annotated(digits_cache: Path) -> Path:
    """The composed scenes with COCO's annotations of each side."""
    return scenes(digits_cache)


def test_a_least_score_may_be_given_where_there_are_boxes(made: Made) -> None:
    if made.task == "segmentation":
        with pytest.raises(OptionsError, match="segmentation has no boxes"):
            Predictor.load(made.folder, least_score=0.5)
        return
    config = Predictor.load(made.folder, least_score=0.5).config
    assert config.calibration.least_score == 0.5


@pytest.mark.parametrize("made", ["segmentation"], indirect=True)
def test_a_mask_that_changed_is_not_judged_by(made: Made, tmp_path: Path) -> None:
    sample = made.manifest.side("test")[0]
    assert isinstance(sample.truth, Mask)
    other = tmp_path / "mask.png"
    other.write_bytes(made.manifest.side("test")[1].truth.path.read_bytes())  # type: ignore[union-attr]
    moved = replace(sample, truth=replace(sample.truth, path=other))
    with pytest.raises(DataError, match="mask changed since it was checked"):
        true_mask(moved, made.manifest.classes, made.manifest.mask_values)


@pytest.mark.parametrize("made", ["segmentation"], indirect=True)
def test_an_answer_with_holes_is_refused_by_its_row(active: str, made: Made) -> None:
    frame = dataset_of(replace(made.manifest, samples=made.manifest.side("test")[:3])).frame()
    said = frame.assign(said=frame["segments"])
    said.loc[1, "said"] = json.dumps(json.loads(said["said"][1])[:1])
    with pytest.raises(DataError, match="row 1: the answer leaves pixels without a class"):
        mlflow.models.evaluate(
            data=said, targets="segments", predictions="said", model_type="semantic-segmentation"
        )


def test_a_served_model_answers_as_its_predictor_and_has_no_binary_columns(made: Made) -> None:
    loaded = mlflow.pyfunc.load_model(made.packaged)
    kinds = [str(column.type) for column in loaded.metadata.get_output_schema()]
    assert "binary" not in " ".join(kinds)
    samples = made.manifest.side("test")[:3]
    images = pd.DataFrame({"image": [sample.path.read_bytes() for sample in samples]})
    answers = loaded.predict(images)
    assert list(answers.columns) == [made.target]
    predictor = Predictor.load(made.folder)
    (found,) = held_out.answers(predictor, samples)
    expected = [predictor.task.answering.served(a, predictor.frame) for a in found]
    assert answers[made.target].tolist() == [row[made.target] for row in expected]


def test_a_caller_may_ask_for_less_certain_boxes(made: Made) -> None:
    loaded = mlflow.pyfunc.load_model(made.packaged)
    images = pd.DataFrame({"image": [made.manifest.side("test")[0].path.read_bytes()]})
    if made.task == "segmentation":
        assert loaded.metadata.signature.params is None
        return
    few, many = (
        len(loaded.predict(images, params={"least_score": least})["boxes"][0])
        for least in (0.9, 0.05)
    )
    assert few < many


def test_the_evaluator_finds_what_the_study_would(
    client: MlflowClient, active: str, made: Made
) -> None:
    samples = made.manifest.side("test")
    predictor = Predictor.load(made.folder)
    frame = made.frame(predictor.config)
    evidence = held_out.evidence(predictor, samples, frame)
    expected = predictor.task.judging.evaluate(evidence, samples, frame)
    tests = dataset_of(replace(made.manifest, samples=samples))
    result = mlflow.models.evaluate(made.packaged, tests, model_type=made.model_type)
    assert result.metrics == pytest.approx(expected)
    assert client.get_run(active).data.metrics == result.metrics


def test_right_predictions_are_all_right(
    client: MlflowClient, active: str, annotated: Path, tmp_path: Path
) -> None:
    frame = mlflow.data.from_annotated_images(annotated).frame()
    said = frame.assign(said=frame["boxes"])
    result = mlflow.models.evaluate(
        data=said, targets="boxes", predictions="said", model_type="object-detection"
    )
    assert result.metrics["map"] == pytest.approx(1.0)
    files = {item.path for item in client.list_artifacts(active, "evaluation")}
    assert "evaluation/per_class.csv" in files
    assert "evaluation/confusion_matrix.png" in files


@pytest.mark.parametrize(
    "wrong", ["no JSON", "[1, 2]", '[{"label": "a", "size": [1, 1], "counts": "1"}]']
)
def test_a_target_of_another_form_is_refused_by_its_row(
    active: str, annotated: Path, wrong: str
) -> None:
    frame = mlflow.data.from_annotated_images(annotated).frame()
    frame.loc[2, "boxes"] = wrong
    with pytest.raises(DataError, match="row 2: the target"):
        mlflow.models.evaluate(
            data=frame.assign(said=frame["boxes"]),
            targets="boxes",
            predictions="said",
            model_type="object-detection",
        )


# Of pycocotools' own code under numpy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_scores_say_for_each_image_what_is_in_it(made: Made, tmp_path: Path) -> None:
    predictor = Predictor.load(made.folder)
    source = tmp_path / "in"
    source.mkdir()
    samples = made.manifest.side("test")[:5]
    for number, sample in enumerate(samples):
        (source / f"{number}.png").write_bytes(sample.path.read_bytes())
    (source / "broken.png").write_bytes(b"no image")
    inputs = find(str(source), classes=predictor.config.classes)
    *_, ended = score(predictor, inputs, tmp_path / "out.parquet", model_version="scenes/1")
    assert (ended.total, ended.errors) == (6, 1)  # type: ignore[union-attr]
    rows = pd.read_parquet(tmp_path / "out.parquet")
    assert rows["path"].nunique() == 6
    broken = rows[rows["error"].notna()]
    assert [Path(path).name for path in broken["path"]] == ["broken.png"]
    assert broken[made.target].isna().all()
    good = rows[rows["error"].isna()]
    if made.task == "detection":
        assert (good.groupby("path")["label"].count() == good.groupby("path")["boxes"].max()).all()
        found = good[good["label"].notna()]
        assert (found["xmax"] <= samples[0].width).all()
        assert (found["score"] >= predictor.config.calibration.least_score).all()
    else:
        for segments in good["segments"]:
            assert_whole(segments)


class TestGate:
    def answers(self, made: Made, spoilt: int) -> Contestant:
        """Right answers, but for so many images, which have those of the next one."""
        task, samples = TASKS[made.task], made.manifest.side("test")
        frame = made.frame(model_folder.read_config(made.folder))
        right = ANSWERS[made.task][0]
        said = [right(sample, frame) for sample in samples]
        said = [*said[1 : spoilt + 1], *said[spoilt:]]
        return Contestant(frame, task.judging.evidence(said, samples, frame, 0))

    def verdict(self, made: Made, challenger: int, champion: int) -> list[str]:
        found = judge(
            Gate(max_class_drop=1.0),
            TASKS[made.task].judging,
            made.manifest.side("test"),
            self.answers(made, challenger),
            self.answers(made, champion),
        )
        return [condition.name for condition in found.failed]

    def test_the_same_answers_pass(self, made: Made) -> None:
        assert self.verdict(made, 3, 3) == []

    def test_a_challenger_that_is_better_passes(self, made: Made) -> None:
        assert self.verdict(made, 0, 8) == []

    def test_a_class_that_few_images_show_cannot_veto(self, made: Made) -> None:
        samples = made.manifest.side("test")
        judging = TASKS[made.task].judging
        comparison = compare(
            judging, judging.metrics[0], samples, self.answers(made, 8), self.answers(made, 0)
        )
        rare = [c.name for c in comparison.classes if c.images < FEW_IMAGES and c.drop > 0.1]
        assert rare
        found = judge(Gate(), judging, samples, self.answers(made, 8), self.answers(made, 0))
        dropped = [c.message for c in found.failed if c.name == "class drop"]
        assert not any(f"{name!r}" in message for name in rare for message in dropped)

    def test_one_that_is_worse_on_most_images_is_worse_and_not_by_chance(self, made: Made) -> None:
        assert self.verdict(made, 8, 0) == ["improvement", "not worse"]


def test_json_of_a_data_set_is_what_the_evaluator_reads(annotated: Path) -> None:
    frame = mlflow.data.from_annotated_images(annotated).frame()
    boxes = json.loads(frame["boxes"][0])
    assert {"label", "xmin", "ymin", "xmax", "ymax"} == set(boxes[0])


def test_a_picture_that_is_delivered_twice_is_in_the_series_once(
    client: MlflowClient, experiment_id: str, run_id: str, tmp_path: Path
) -> None:
    path = tmp_path / "predictions.jpg"
    Image.new("RGB", (8, 8), "teal").save(path)
    delivery = messages.Delivery(client, experiment_id)
    message = messages.image("trial-0", "predictions", path, 3, 1_700_000_000_000)
    for again in (False, True):
        delivery(message, {"trial-0": run_id}, again)
    files = [f.path for f in client.list_artifacts(run_id, "images")]
    assert len([name for name in files if name.endswith(".png")]) == 1
    delivery(messages.image("trial-0", "predictions", path, 4, 1), {"trial-0": run_id}, True)
    assert len(client.list_artifacts(run_id, "images")) == 2 * len(files)
