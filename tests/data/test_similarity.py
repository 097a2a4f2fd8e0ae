from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from sft_mlflow.data import similarity
from sft_mlflow.data.readers import read
from sft_mlflow.data.scan import THUMBNAIL_SIDE, FileFacts, scan
from sft_mlflow.data.similarity import near_duplicates

Picture = Callable[..., Image.Image]


def variants(image: Image.Image, folder: Path) -> list[Path]:
    """The picture as six people would hand it on."""
    half = (image.width // 2, image.height // 2)
    squeezed = (image.width // 3, image.height // 3)
    saved = [
        (image, "original.png", {}),
        (image, "mail.jpg", {"quality": 60}),
        (image, "site.webp", {"quality": 70}),
        (image.resize(half, Image.Resampling.BICUBIC), "half.jpg", {"quality": 85}),
        (image.resize(squeezed, Image.Resampling.BOX), "third.png", {}),
        (image.convert("P", palette=Image.Palette.ADAPTIVE), "palette.gif", {}),
    ]
    for picture, name, options in saved:
        picture.save(folder / name, **options)
    return [folder / name for _, name, _ in saved]


@pytest.mark.parametrize("which", [0, 1])
def test_a_photo_re_encoded_and_resized_is_one_cluster(tmp_path: Path, which: int) -> None:
    photo = Image.fromarray(load_sample_images().images[which])
    paths = variants(photo, tmp_path)
    assert near_duplicates(scan(paths)) == (tuple(range(len(paths))),)


@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_found_among_many_others(picture: Picture, tmp_path: Path, seed: int) -> None:
    paths = []
    for number in range(60):
        path = tmp_path / f"{number:03d}.png"
        picture(1_000 * seed + number, 96, 96).save(path)
        paths.append(path)
    for number in (3, 40):
        path = tmp_path / f"copy-{number}.jpg"
        picture(1_000 * seed + number, 96, 96).save(path, quality=80)
        paths.append(path)
    assert near_duplicates(scan(paths)) == ((3, 60), (40, 61))


def test_of_the_1797_digits_only_a_few_of_one_class_look_alike(digits_cache: Path) -> None:
    entries = read("digits", cache=digits_cache).entries
    clusters = near_duplicates(scan([entry.path for entry in entries]))
    assert sum(map(len, clusters)) < 0.01 * len(entries)
    for cluster in clusters:
        assert len({entries[position].label for position in cluster}) == 1


def test_the_same_shape_in_another_colour_is_another_picture(tmp_path: Path) -> None:
    shape = Image.new("L", (64, 64), 0)
    shape.paste(255, (16, 16, 48, 48))
    empty = Image.new("L", (64, 64), 0)
    paths = [tmp_path / "red.png", tmp_path / "blue.png"]
    Image.merge("RGB", (shape, empty, empty)).save(paths[0])
    Image.merge("RGB", (empty, empty, shape)).save(paths[1])
    assert near_duplicates(scan(paths)) == ()


def test_faint_pictures_differ_by_more_than_their_noise(picture: Picture, tmp_path: Path) -> None:
    paths = [tmp_path / f"{seed}.png" for seed in range(8)]
    for seed, path in enumerate(paths):
        faint = np.asarray(picture(seed)).astype(float) * 0.06 + 120
        Image.fromarray(faint.astype(np.uint8)).save(path)
    assert near_duplicates(scan(paths)) == ()


def test_comparisons_grow_with_the_files_and_not_with_their_square(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random = np.random.default_rng(0)
    side = THUMBNAIL_SIDE * THUMBNAIL_SIDE * 3
    pictures = [random.integers(0, 256, side, dtype=np.uint8).tobytes() for _ in range(100)]
    hashes = random.integers(0, 2**63, (20_000, 2)).tolist()
    facts = [
        FileFacts(Path(f"/{n}"), str(n), 1, hashes=(p, d), thumbnail=memoryview(pictures[n % 100]))
        for n, (p, d) in enumerate(hashes)
    ]
    # Blank pages all have one hash: 12.5 million pairs, were each compared with each.
    blank = np.full(side, 250, dtype=np.uint8).tobytes()
    facts += [
        FileFacts(Path(f"/b{n}"), f"b{n}", 1, thumbnail=memoryview(blank)) for n in range(5_000)
    ]
    proposed, compared = similarity._proposed, []

    def counted(*arguments: Any) -> Iterator[NDArray[np.intp]]:
        for pairs in proposed(*arguments):
            compared.append(len(pairs))
            yield pairs

    monkeypatch.setattr(similarity, "_proposed", counted)
    assert near_duplicates(facts) == (tuple(range(20_000, 25_000)),)
    assert sum(compared) <= 2 * similarity._WINDOW * len(facts)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_files_have_no_duplicates(
    picture: Picture, tmp_path: Path, count: int
) -> None:
    picture(1).save(tmp_path / "one.png")
    assert near_duplicates(scan([tmp_path / "one.png"] * count)) == ()
