from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sft_mlflow.data.images import Interpolation
from sft_mlflow.data.loading import load_manifest
from sft_mlflow.data.manifest import Sample
from sft_mlflow.data.pixels import PixelSpec, pixels_of, stream

Picture = Callable[..., Image.Image]
FolderOf = Callable[..., Path]
SPEC = PixelSpec(32, "bilinear")


@pytest.fixture
def samples(folder_of: FolderOf, picture: Picture, tmp_path: Path) -> tuple[Sample, ...]:
    root = folder_of()
    picture(700, 300, 200).save(root / "cat" / "photo.jpg")
    picture(701).convert("RGBA").save(root / "cat" / "alpha.png")
    return load_manifest(str(root), cache=tmp_path).manifest.samples


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_a_stream_gives_the_pixels_of_each_image_in_order(
    samples: tuple[Sample, ...], interpolation: Interpolation
) -> None:
    spec = PixelSpec(20, interpolation)
    batches = list(stream((sample.path for sample in samples), spec, 7))
    expected = np.stack([pixels_of(sample.path, spec) for sample in samples])
    assert np.array_equal(np.concatenate([batch.pixels for batch in batches]), expected)
    assert [len(batch.paths) for batch in batches] == [7] * 8 + [6]
    assert list(itertools.chain(*(batch.paths for batch in batches))) == [s.path for s in samples]


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
