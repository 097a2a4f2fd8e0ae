from __future__ import annotations

import io
import pickle
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from sft_mlflow.data.images import MAX_PIXELS, BrokenImageError, decode, examine, fit_square
from sft_mlflow.errors import DataError

Picture = Callable[..., Image.Image]


def encoded(image: Image.Image, format_: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds one byte of pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("format_", ["PNG", "BMP", "TIFF", "GIF", "JPEG", "WEBP"])
def test_every_format_gives_the_picture_that_was_saved(picture: Picture, format_: str) -> None:
    original = picture(1)
    found = np.asarray(decode(encoded(original, format_)), dtype=int)
    assert found.shape == (40, 48, 3)
    lossless = format_ in ("PNG", "BMP", "TIFF")
    assert np.abs(found - np.asarray(original, dtype=int)).mean() <= (0 if lossless else 8)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_opaque_modes_equal_pillows_own_conversion(picture: Picture, mode: str) -> None:
    stored = picture(2).convert(mode)
    found = decode(encoded(stored, "PNG"))
    assert found.mode == "RGB"
    assert np.array_equal(np.asarray(found), np.asarray(stored.convert("RGB")))


def test_a_transparent_pixel_is_white_and_a_half_transparent_one_is_half_way() -> None:
    pixels = np.zeros((1, 3, 4), dtype=np.uint8)
    pixels[0, :, 3] = (0, 128, 255)
    found = np.asarray(decode(encoded(Image.fromarray(pixels), "PNG")))[0, :, 0]
    assert found.tolist() == [255, 127, 0]


def test_grey_with_alpha_is_laid_over_white() -> None:
    stored = Image.new("LA", (2, 2), (0, 0))
    assert np.asarray(decode(encoded(stored, "PNG"))).min() == 255


@pytest.mark.parametrize("transparency", [0, bytes([0, 255])])
def test_the_transparent_entry_of_a_palette_is_white(transparency: int | bytes) -> None:
    stored = Image.new("P", (2, 1))
    stored.putpalette([200, 0, 0, 0, 0, 200])
    stored.putpixel((1, 0), 1)
    data = encoded(stored, "PNG", transparency=transparency)
    assert np.asarray(decode(data))[0].tolist() == [[255, 255, 255], [0, 0, 200]]


def test_cmyk_jpeg_has_the_colours_it_was_made_from() -> None:
    red = Image.new("RGB", (16, 16), (250, 10, 10)).convert("CMYK")
    found = np.asarray(decode(encoded(red, "JPEG", quality=95)), dtype=int)
    assert np.abs(found - (250, 10, 10)).max() < 12


def test_sixteen_bit_grey_keeps_its_scale() -> None:
    values = np.array([[0, 257, 32_896, 65_535]], dtype=np.uint16)
    for format_ in ("PNG", "TIFF"):
        found = np.asarray(decode(encoded(Image.fromarray(values), format_)))
        assert found[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 128.0, 255.0], [0, 128, 255]),
        ([0.0, 32_896.0, 65_535.0], [0, 128, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 0.0, 0.0], [0, 0, 0]),
        ([7.0, 7.0, 7.0], [7, 7, 7]),
        ([float("nan"), 0.0, 1.0], [0, 0, 255]),
    ],
)
def test_float_tiff_is_scaled_by_the_range_it_fits(
    values: list[float], expected: list[int]
) -> None:
    stored = Image.fromarray(np.array([values], dtype=np.float32))
    assert np.asarray(decode(encoded(stored, "TIFF")))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_pillow_does(
    picture: Picture, format_: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(3), format_, exif=exif)
    with Image.open(io.BytesIO(data)) as opened:
        expected = ImageOps.exif_transpose(opened).convert("RGB")
    found, encoding = examine(data, None)
    assert np.array_equal(np.asarray(found), np.asarray(expected))
    assert encoding.orientation == orientation


@pytest.mark.parametrize("broken", [b"II*\0", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff"])
def test_broken_exif_neither_fails_nor_warns(picture: Picture, broken: bytes) -> None:
    data = encoded(picture(3), "JPEG", exif=b"Exif\0\0" + broken)
    assert examine(data, None)[1].orientation == 1


def test_a_tiff_with_a_broken_tag_is_read_without_a_warning(picture: Picture) -> None:
    data = encoded(picture(3), "TIFF", tiffinfo={270: "a description of the picture"})
    at = data.index(struct.pack("<HH", 270, 2)) + 4
    broken = data[:at] + struct.pack("<I", 1_000_000) + data[at + 4 :]
    # Pillow alone does warn.
    with pytest.warns(UserWarning, match="tag 270"), Image.open(io.BytesIO(broken)) as opened:
        opened.load()
    assert np.array_equal(np.asarray(decode(broken)), np.asarray(picture(3)))


def test_an_animation_shows_its_first_frame(picture: Picture) -> None:
    frames = [picture(seed) for seed in range(3)]
    for format_ in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"save_all": True, "append_images": frames[1:]}
        if format_ == "WEBP":
            options["lossless"] = True
        found, encoding = examine(encoded(frames[0], format_, **options), None)
        difference = np.abs(np.asarray(found, dtype=int) - np.asarray(frames[0], dtype=int)).mean()
        assert encoding.frames == 3
        assert difference < 8


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_half_a_file_is_a_data_error_that_names_it(
    picture: Picture, tmp_path: Path, format_: str, share: float
) -> None:
    whole = encoded(picture(4, 200, 160), format_)
    path = tmp_path / "cut.jpg"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=r"cut\.jpg") as raised:
        decode(path)
    assert isinstance(raised.value, BrokenImageError)
    assert raised.value.kind in ("truncated", "unreadable")


def test_a_jpeg_cut_in_its_pixels_is_called_truncated(picture: Picture) -> None:
    whole = encoded(picture(4, 200, 160), "JPEG")
    with pytest.raises(BrokenImageError) as raised:
        decode(whole[: len(whole) // 2], shorter_side=16)
    assert raised.value.kind == "truncated"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty"),
        (b"no picture, just words", "not-an-image"),
        (b"%PDF-1.7 and so on", "not-an-image"),
        (b"\xff\xd8\xff", "unreadable"),
        (png_header(50_000, 50_000), "bomb"),
        (png_header(9_460, 9_460), "bomb"),
    ],
)
def test_what_gives_no_pixels_says_why(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(BrokenImageError) as raised:
        decode(path)
    kinds = (kind, "truncated") if kind == "unreadable" else (kind,)
    assert raised.value.kind in kinds


def test_the_limit_itself_is_no_bomb() -> None:
    # One row of pixels more than the file holds: past the size check, short of data.
    assert 9_459 * 9_459 <= MAX_PIXELS < 9_460 * 9_460
    with pytest.raises(BrokenImageError) as raised:
        decode(png_header(9_459, 1))
    assert raised.value.kind != "bomb"


def test_a_missing_file_and_a_folder_are_unreadable(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.png", tmp_path):
        with pytest.raises(BrokenImageError) as raised:
            decode(path)
        assert raised.value.kind == "unreadable"


def test_decoding_leaves_pillow_and_the_warning_filters_as_they_were(picture: Picture) -> None:
    before = (list(warnings.filters), Image.MAX_IMAGE_PIXELS)
    decode(encoded(picture(1), "TIFF"))
    with pytest.raises(BrokenImageError):
        decode(png_header(50_000, 50_000))
    assert (list(warnings.filters), Image.MAX_IMAGE_PIXELS) == before


def test_draft_decoding_is_smaller_never_too_small_and_looks_the_same(picture: Picture) -> None:
    data = encoded(picture(5, 640, 480), "JPEG", quality=95)
    drafted = decode(data, shorter_side=60)
    assert 60 <= min(drafted.size) < 480
    full, fast = (
        fit_square(image, 60, "bilinear").astype(int) for image in (decode(data), drafted)
    )
    assert np.abs(full - fast).mean() < 1.0


@pytest.mark.parametrize("side", [1, 59, 480, 1000])
def test_draft_never_goes_below_the_shorter_side_asked_for(picture: Picture, side: int) -> None:
    drafted = decode(encoded(picture(5, 640, 480), "JPEG"), shorter_side=side)
    assert min(drafted.size) >= min(side, 480)


@pytest.mark.parametrize("size", [1, 20, 40, 96])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_fit_square_equals_resizing_all_and_cropping(
    picture: Picture, size: int, interpolation: str
) -> None:
    image = picture(6, 80, 40)
    found = fit_square(image, size, interpolation)
    method = Image.Resampling[interpolation.upper()]
    whole = image.resize((2 * size, size), method)
    expected = np.asarray(whole)[:, size // 2 : size // 2 + size].astype(int)
    assert found.shape == (size, size, 3)
    assert found.dtype == np.uint8
    if size % 2 == 0:
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_a_strip_of_a_million_pixels_becomes_its_centre_square() -> None:
    strip = Image.new("RGB", (1_000_000, 1))
    strip.putpixel((500_000, 0), (255, 0, 0))
    assert fit_square(strip, 224, "bilinear").shape == (224, 224, 3)


def test_a_broken_image_is_told_between_processes() -> None:
    error = BrokenImageError(Path("a.png"), "empty", "the file is empty")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.kind, again.reason) == (str(error), error.kind, error.reason)
