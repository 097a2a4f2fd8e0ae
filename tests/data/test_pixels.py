from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sft_mlflow.data.images import Interpolation
from sft_mlflow.data.loading import load_manifest
from sft_mlflow.data.manifest import Sample
from sft_mlflow.data.pixels import PixelSpec, pixel_table, pixels_of, stream
from sft_mlflow.errors import DataError

Picture = Callable[..., Image.Image]
FolderOf = Callable[..., Path]
SPEC = PixelSpec(32, "bilinear")


@pytest.fixture
def samples(folder_of: FolderOf, picture: Picture, tmp_path: Path) -> tuple[Sample, ...]:
    root = folder_of()
    picture(700, 300, 200).save(root / "cat" / "photo.jpg")
    picture(701).convert("RGBA").save(root / "cat" / "alpha.png")
    return load_manifest(str(root), cache=tmp_path).manifest.samples


def test_rows_are_the_samples_in_order(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    table = pixel_table(samples, SPEC, tmp_path / "px", lambda *done: told.append(done))
    assert table.shape == (62, 32, 32, 3)
    assert table.dtype == np.uint8
    for row, sample in zip(table, samples, strict=True):
        assert np.array_equal(row, pixels_of(sample.path, SPEC))
    assert told == [(done, 62) for done in range(1, 63)]


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_table_and_stream_give_the_same_bits(
    samples: tuple[Sample, ...], tmp_path: Path, interpolation: Interpolation
) -> None:
    spec = PixelSpec(20, interpolation)
    table = pixel_table(samples, spec, tmp_path / "px")
    batches = list(stream((sample.path for sample in samples), spec, 7))
    assert np.array_equal(np.concatenate([batch.pixels for batch in batches]), table)
    assert [len(batch.paths) for batch in batches] == [7] * 8 + [6]
    assert list(itertools.chain(*(batch.paths for batch in batches))) == [s.path for s in samples]


def test_a_table_is_opened_again_without_its_images(
    samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    first = np.array(pixel_table(samples, SPEC, tmp_path / "px"))
    for sample in samples:
        sample.path.unlink()
    again = pixel_table(samples, SPEC, tmp_path / "px")
    assert np.array_equal(again, first)
    with pytest.raises(ValueError, match="read-only"):
        again[0] = 0


def test_another_order_spec_or_content_is_another_table(
    samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "px"
    pixel_table(samples, SPEC, folder)
    pixel_table(samples[::-1], SPEC, folder)
    pixel_table(samples[1:], SPEC, folder)
    pixel_table(samples, PixelSpec(32, "nearest"), folder)
    pixel_table(samples, PixelSpec(33, "bilinear"), folder)
    assert len(list(folder.glob("*.npy"))) == 5


def test_a_file_that_changed_since_the_check_is_an_error_and_leaves_no_table(
    samples: tuple[Sample, ...], picture: Picture, tmp_path: Path
) -> None:
    picture(999).save(samples[5].path)
    with pytest.raises(DataError, match="changed since it was checked"):
        pixel_table(samples, SPEC, tmp_path / "px")
    assert [path for path in (tmp_path / "px").iterdir() if path.suffix != ".lock"] == []


def test_what_a_killed_process_left_is_written_anew(
    samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    whole = pixel_table(samples, SPEC, tmp_path / "px")
    (path,) = (tmp_path / "px").glob("*.npy")
    expected = np.array(whole)
    path.rename(path.with_suffix(".partial"))
    with path.with_suffix(".partial").open("r+b") as file:
        file.truncate(5_000)
    assert np.array_equal(pixel_table(samples, SPEC, tmp_path / "px"), expected)


def _sum_of_table(samples: tuple[Sample, ...], folder: Path) -> int:
    return int(pixel_table(samples, SPEC, folder).sum())


def test_several_processes_may_ask_at_once(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        sums = pool.starmap(_sum_of_table, [(samples, tmp_path / "px")] * 4)
    assert set(sums) == {int(pixel_table(samples, SPEC, tmp_path / "px").sum())}
    assert len(list((tmp_path / "px").glob("*.npy"))) == 1


def test_no_samples_give_an_empty_table(tmp_path: Path) -> None:
    assert pixel_table((), SPEC, tmp_path / "px").shape == (0, 32, 32, 3)


def test_broken_images_are_errors_of_their_rows(picture: Picture, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.png", "b.png", "gone.png", "d.png", "words.png")]
    for path in (paths[0], paths[3]):
        picture(1).save(path)
    paths[1].touch()
    paths[4].write_text("words")
    (batch,) = stream(paths, SPEC, 8)
    assert batch.paths == tuple(paths)
    assert batch.readable == (0, 3)
    assert batch.pixels.shape == (2, 32, 32, 3)
    assert sorted(batch.errors) == [1, 2, 4]
    assert batch.errors[1] == "the file is empty"


def test_a_stream_of_nothing_but_broken_images_still_has_its_rows(tmp_path: Path) -> None:
    batches = list(stream([tmp_path / str(number) for number in range(5)], SPEC, 2))
    assert [len(batch.errors) for batch in batches] == [2, 2, 1]
    assert batches[0].pixels.shape == (0, 32, 32, 3)


def test_a_stream_reads_no_further_ahead_than_told(picture: Picture, tmp_path: Path) -> None:
    picture(1).save(tmp_path / "a.png")
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield tmp_path / "a.png"

    batches = stream(endless(), SPEC, 4, ahead=3)
    for given in range(1, 20):
        next(batches)
        assert taken <= 4 * (given + 3)
    batches.close()


def test_an_empty_stream_has_no_batches() -> None:
    assert list(stream([], SPEC, 4)) == []
