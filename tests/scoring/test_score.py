from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from numpy.typing import NDArray

from sft_mlflow.data.pixels import PixelSpec, shown
from sft_mlflow.errors import OptionsError
from sft_mlflow.scoring import score as module
from sft_mlflow.scoring.events import BatchScored, ScoreEnded, ScoreEvent, ScoreStarted
from sft_mlflow.scoring.inputs import find
from sft_mlflow.scoring.score import read_scores, score
from sft_mlflow.sources.model_folder import Calibration, ModelConfig
from sft_mlflow.tasks.base import Answer
from sft_mlflow.tasks.classification import CLASSIFICATION, calibration, metrics
from sft_mlflow.tasks.predictor import Predictor

from .conftest import CLASSES, write_image

PROBABILITIES = [f"probability_{name}" for name in CLASSES]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of one batch, so that 201 images make four."""
    monkeypatch.setattr(module, "PART_IMAGES", 64)


def events(
    predictor: Predictor, source: object, output: Path, *, overwrite: bool = False
) -> Iterator[ScoreEvent]:
    inputs = find(str(source), classes=predictor.config.classes)
    return score(predictor, inputs, output, model_version="animals/3", overwrite=overwrite)


class Counting:
    """The predictor, and how many images it was asked about."""

    def __init__(self, predictor: Predictor, config: ModelConfig | None = None) -> None:
        self._predictor, self.asked = predictor, 0
        self.config = config or predictor.config
        self.task, self.frame = predictor.task, predictor.frame

    def answers(self, pixels: NDArray[np.uint8], sizes: Sequence[tuple[int, int]]) -> list[Answer]:
        self.asked += len(pixels)
        return self._predictor.answers(pixels, sizes)


def probabilities_of(predictor: Predictor, paths: Sequence[Path]) -> NDArray[np.float64]:
    pixels, sizes = zip(*(shown(path, PixelSpec(32, "bilinear")) for path in paths), strict=True)
    return calibration.softmax(np.stack(predictor.answers(np.stack(pixels), sizes)))


def figures_of(output: Path) -> tuple[int, int, dict[str, float]] | None:
    return CLASSIFICATION.judging.of_scores(read_scores(output), CLASSES)


def test_each_image_is_a_row_with_the_models_answer(
    predictor: Predictor, animals: Path, tmp_path: Path
) -> None:
    found = list(events(predictor, animals, tmp_path / "out.parquet"))
    frame = pd.read_parquet(tmp_path / "out.parquet")
    assert list(frame.columns) == [
        "path", "label", "prediction", *PROBABILITIES, "model_version", "error",
    ]  # fmt: skip
    assert frame["path"].tolist() == [str(p) for p in sorted(animals.rglob("*.png"))]
    assert frame["label"].tolist() == [Path(path).parent.name for path in frame["path"]]
    assert set(frame["model_version"]) == {"animals/3"}
    assert frame["error"].isna().all()
    alone = probabilities_of(predictor, [Path(frame["path"][200])])
    assert frame.loc[200, PROBABILITIES].tolist() == alone[0].tolist()
    assert frame["prediction"].tolist() == [
        CLASSES[i] for i in frame[PROBABILITIES].to_numpy().argmax(axis=1)
    ]
    started, *batches, ended = found
    assert isinstance(started, ScoreStarted)
    assert (started.total, started.done, started.labelled) == (201, 0, 201)
    assert [batch.done for batch in batches if isinstance(batch, BatchScored)] == [
        64, 128, 192, 201,
    ]  # fmt: skip
    assert isinstance(ended, ScoreEnded)
    assert (ended.total, ended.errors, ended.scored) == (201, 0, 201)
    assert {path.name for path in tmp_path.iterdir()} == {"out.parquet"}


def test_an_unreadable_image_is_a_row_with_an_error(predictor: Predictor, tmp_path: Path) -> None:
    root = tmp_path / "in"
    for seed, name in enumerate(("a.png", "c.png")):
        write_image(root / name, seed)
    (root / "b.png").write_bytes(b"no image")
    (root / "d.png").write_bytes((root / "a.png").read_bytes()[:300])
    *_, ended = events(predictor, root, tmp_path / "out.parquet")
    assert isinstance(ended, ScoreEnded)
    assert ended.errors == 2
    frame = pd.read_parquet(tmp_path / "out.parquet")
    assert [Path(path).name for path in frame["path"]] == ["a.png", "b.png", "c.png", "d.png"]
    assert frame["error"].notna().tolist() == [False, True, False, True]
    assert frame["prediction"].isna().tolist() == [False, True, False, True]
    assert frame[PROBABILITIES].isna().all(axis=1).tolist() == [False, True, False, True]
    assert np.allclose(frame[PROBABILITIES].sum(axis=1)[[0, 2]], 1)


def test_only_broken_images_make_an_output_too(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path\nmissing-1.png\nmissing-2.png\n")
    *_, ended = events(predictor, tmp_path / "t.csv", tmp_path / "out.parquet")
    assert isinstance(ended, ScoreEnded)
    assert (ended.total, ended.errors) == (2, 2)
    assert pd.read_parquet(tmp_path / "out.parquet")["error"].notna().all()


@pytest.mark.parametrize("name", ["out.parquet", "out"])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_an_interrupted_job_goes_on_and_the_output_is_the_same_to_the_byte(
    predictor: Predictor, animals: Path, tmp_path: Path, name: str, stop: int
) -> None:
    whole, halves = tmp_path / "whole" / name, tmp_path / "halves" / name
    list(events(predictor, animals, whole))
    running = events(predictor, animals, halves)
    list(islice(running, stop))
    running.close()  # type: ignore[attr-defined]
    assert not halves.exists()
    counting = Counting(predictor)
    started, *_, ended = events(counting, animals, halves)  # type: ignore[arg-type]
    assert isinstance(started, ScoreStarted)
    assert isinstance(ended, ScoreEnded)
    # The part under way when it stopped is lost, and no more.
    assert started.done == 64 * min(stop - 1, 3)
    assert counting.asked == ended.scored == 201 - started.done
    files = sorted(p.relative_to(whole) for p in ([whole] if whole.is_file() else whole.iterdir()))
    assert files == sorted(
        p.relative_to(halves) for p in ([halves] if halves.is_file() else halves.iterdir())
    )
    for file in files:
        assert (halves / file).read_bytes() == (whole / file).read_bytes()
    assert [path.name for path in halves.parent.iterdir()] == [name]


def test_a_part_that_was_half_written_is_written_again(
    predictor: Predictor, animals: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.parquet"
    running = events(predictor, animals, output)
    list(islice(running, 3))
    running.close()  # type: ignore[attr-defined]
    (tmp_path / "out.parquet.partial" / "_part.partial").write_bytes(b"half")
    list(events(predictor, animals, output))
    assert len(pd.read_parquet(output)) == 201


def test_a_folder_is_read_by_pandas_as_one_table(
    predictor: Predictor, animals: Path, tmp_path: Path
) -> None:
    list(events(predictor, animals, tmp_path / "one.parquet"))
    list(events(predictor, animals, tmp_path / "many"))
    one, many = (pd.read_parquet(tmp_path / name) for name in ("one.parquet", "many"))
    pd.testing.assert_frame_equal(one, many)
    assert len(list((tmp_path / "many").glob("part-*.parquet"))) == 4


def test_the_same_job_again_does_nothing(
    predictor: Predictor, animals: Path, tmp_path: Path
) -> None:
    for name in ("out.parquet", "out"):
        list(events(predictor, animals, tmp_path / name))
        counting = Counting(predictor)
        *_, ended = events(counting, animals, tmp_path / name)  # type: ignore[arg-type]
        assert isinstance(ended, ScoreEnded)
        assert (ended.already_there, ended.total, counting.asked) == (True, 201, 0)


def test_another_output_is_refused_and_overwritten_only_when_told(
    predictor: Predictor, animals: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.parquet"
    output.write_text("mine")
    with pytest.raises(OptionsError, match="exists and is not the result of this job"):
        list(events(predictor, animals, output))
    assert output.read_text() == "mine"
    list(events(predictor, animals, output, overwrite=True))
    assert len(pd.read_parquet(output)) == 201
    folder = tmp_path / "out"
    list(events(Counting(predictor), animals, folder))  # type: ignore[arg-type]
    assert len(pd.read_parquet(folder)) == 201
    few = write_image(tmp_path / "few" / "one.png", 0).parent
    with pytest.raises(OptionsError, match="not the result"):
        list(events(predictor, few, folder))
    list(events(predictor, few, folder, overwrite=True))
    assert len(pd.read_parquet(folder)) == 1
    assert {p.name for p in tmp_path.iterdir()} == {"few", "out", "out.parquet"}


def test_an_empty_folder_is_taken_and_a_name_of_another_format_is_not(
    predictor: Predictor, tmp_path: Path
) -> None:
    image = write_image(tmp_path / "photos" / "one.png", 0)
    (tmp_path / "out").mkdir()
    list(events(predictor, image.parent, tmp_path / "out"))
    assert len(pd.read_parquet(tmp_path / "out")) == 1
    with pytest.raises(OptionsError, match="rows are written as Parquet"):
        list(events(predictor, image.parent, tmp_path / "out.csv"))


def test_neither_the_input_nor_a_folder_of_other_things_is_ever_replaced(
    predictor: Predictor, tmp_path: Path
) -> None:
    image = write_image(tmp_path / "photos" / "one.png", 0)
    table = tmp_path / "list.csv"
    table.write_text(f"path\n{image}\n")
    listed = tmp_path / "list.parquet"
    pd.read_csv(table).to_parquet(listed)
    linked = tmp_path / "linked"
    linked.symlink_to(tmp_path)
    others = write_image(tmp_path / "mine.partial" / "two.png", 1)
    for source, output in [
        (image.parent, image.parent),
        (image.parent, tmp_path),
        (image.parent, image),
        (image, image),
        (listed, listed),
        (listed, linked / listed.name),
        (image.parent, tmp_path / "mine"),
        (others.parent, tmp_path / "mine"),
    ]:
        with pytest.raises(OptionsError, match="never replaced"):
            list(events(predictor, source, output, overwrite=True))
    assert image.is_file()
    assert others.is_file()
    assert pd.read_parquet(listed)["path"].tolist() == [str(image)]


def test_an_unfinished_job_of_another_model_is_refused_by_name(
    predictor: Predictor, animals: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.parquet"
    running = events(predictor, animals, output)
    list(islice(running, 3))
    running.close()  # type: ignore[attr-defined]
    hotter = replace(predictor.config, calibration=Calibration(temperature=2.0))
    other = Counting(predictor, hotter)
    with pytest.raises(OptionsError, match="unfinished job of another model "):
        list(events(other, animals, output))  # type: ignore[arg-type]
    list(events(other, animals, output, overwrite=True))  # type: ignore[arg-type]
    assert other.asked == 201


def test_two_processes_do_not_score_to_one_output(
    predictor: Predictor, animals: Path, tmp_path: Path
) -> None:
    (tmp_path / "out.parquet.partial").mkdir()
    with (
        FileLock(tmp_path / "out.parquet.partial" / "_lock"),
        pytest.raises(OptionsError, match="another process"),
    ):
        list(events(predictor, animals, tmp_path / "out.parquet"))


def test_the_output_says_which_job_it_is_of(
    predictor: Predictor, animals: Path, tmp_path: Path
) -> None:
    list(events(predictor, animals, tmp_path / "out.parquet"))
    metadata = pq.read_schema(tmp_path / "out.parquet").metadata
    job = json.loads(metadata[b"sft.job"])
    assert (job["input"], job["model_version"]) == (str(animals), "animals/3")


def test_figures_of_the_output_are_those_of_the_models_answers(
    predictor: Predictor, animals: Path, tmp_path: Path
) -> None:
    list(events(predictor, animals, tmp_path / "out"))
    figures = figures_of(tmp_path / "out")
    paths = sorted(animals.rglob("*.png"))
    probabilities = probabilities_of(predictor, paths)
    targets = np.array([CLASSES.index(path.parent.name) for path in paths])
    assert figures is not None
    assert figures == (201, 0, metrics.summary(probabilities, targets))


def test_an_output_without_labels_has_no_figures(predictor: Predictor, tmp_path: Path) -> None:
    write_image(tmp_path / "in" / "a.png", 0)
    list(events(predictor, tmp_path / "in", tmp_path / "out.parquet"))
    assert figures_of(tmp_path / "out.parquet") is None


def test_a_killed_process_loses_only_the_part_under_way(
    predictor: Predictor, predictor_folder: Path, animals: Path, tmp_path: Path
) -> None:
    code = textwrap.dedent(
        f"""
        import os, signal
        from pathlib import Path
        from sft_mlflow.scoring import score as module
        from sft_mlflow.scoring.inputs import find
        from sft_mlflow.tasks.predictor import Predictor
        module.PART_IMAGES = 64
        predictor = Predictor.load(Path({str(predictor_folder)!r}))
        inputs = find({str(animals)!r}, classes=predictor.config.classes)
        output = Path({str(tmp_path / "out.parquet")!r})
        for event in module.score(predictor, inputs, output, model_version="animals/3"):
            if isinstance(event, module.BatchScored) and event.done == 128:
                os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out.parquet").exists()
    started, *_ = list(events(predictor, animals, tmp_path / "out.parquet"))
    assert isinstance(started, ScoreStarted)
    assert started.done == 128
    list(events(predictor, animals, tmp_path / "whole.parquet"))
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
