from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from sft_mlflow.data.scan import scan

Picture = Callable[..., Image.Image]


def test_facts_come_in_the_order_of_the_paths(picture: Picture, tmp_path: Path) -> None:
    paths = []
    for number in range(40):
        paths.append(tmp_path / f"{number}.png")
        picture(number, 20 + number, 20).save(paths[-1])
    told: list[tuple[int, int]] = []
    facts = scan(paths, progress=lambda done, total: told.append((done, total)))
    assert [fact.path for fact in facts] == paths
    assert [fact.width for fact in facts] == [20 + number for number in range(40)]
    assert told == [(number, 40) for number in range(1, 41)]


def test_facts_tell_how_the_file_stores_its_picture(picture: Picture, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, moving = tmp_path / "turned.jpg", tmp_path / "moving.gif"
    picture(1, 60, 40).save(turned, exif=exif)
    picture(1).save(moving, save_all=True, append_images=[picture(2), picture(3)])
    first, second = scan([turned, moving])
    assert (first.format, first.mode, first.orientation) == ("JPEG", "RGB", 6)
    assert (first.width, first.height) == (40, 60)
    assert (second.format, second.frames) == ("GIF", 3)


def test_the_digest_is_that_of_the_bytes_even_where_they_are_no_image(tmp_path: Path) -> None:
    path = tmp_path / "words.png"
    path.write_bytes(b"words")
    (fact,) = scan([path])
    assert fact.digest == hashlib.sha256(b"words").hexdigest()
    assert fact.problem is not None
    assert fact.problem.kind == "not-an-image"


def test_broken_files_are_facts_and_not_errors(picture: Picture, tmp_path: Path) -> None:
    good, empty, gone = tmp_path / "good.png", tmp_path / "empty.png", tmp_path / "gone.png"
    picture(1).save(good)
    empty.touch()
    kinds = [fact.problem and fact.problem.kind for fact in scan([gone, good, empty])]
    assert kinds == ["unreadable", None, "empty"]


def test_thumbnails_lie_side_by_side_and_a_broken_file_has_none(
    picture: Picture, tmp_path: Path
) -> None:
    paths = [tmp_path / "first.png", tmp_path / "broken.png", tmp_path / "second.png"]
    picture(1, 16, 16).save(paths[0])
    paths[1].write_bytes(b"words")
    picture(2, 64, 64).save(paths[2])
    first, broken, second = (fact.thumbnail for fact in scan(paths))
    assert isinstance(first, memoryview)
    assert isinstance(second, memoryview)
    assert first.obj is second.obj
    assert (len(first), len(broken), len(second)) == (768, 0, 768)
    assert first != second
    assert first.readonly


def test_no_paths_give_no_facts() -> None:
    assert scan([]) == ()
