from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sft_mlflow.data.checks import CheckReport, Finding
from sft_mlflow.data.loading import load_manifest
from sft_mlflow.errors import DataError

Picture = Callable[..., Image.Image]
FolderOf = Callable[..., Path]


def report_on(source: Path, cache: Path, seed: int = 0) -> CheckReport:
    return load_manifest(str(source), cache=cache, seed=seed).report


def of_kind(report: CheckReport, kind: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.kind == kind]


def test_clean_data_have_no_errors_and_no_warnings(
    picture: Picture, folder_of: FolderOf, tmp_path: Path
) -> None:
    root = folder_of(images=60)
    for path in root.rglob("*.png"):
        picture(int(path.stem), 64, 64).save(path)
    assert [f for f in report_on(root, tmp_path).findings if f.severity != "note"] == []


def test_sides_on_which_little_can_be_measured_are_noted(
    folder_of: FolderOf, tmp_path: Path
) -> None:
    report = report_on(folder_of(images=30), tmp_path)
    [note] = [f for f in of_kind(report, "few-samples") if "on test" in f.message]
    fewest = min(report.counts["test"], key=report.counts["test"].__getitem__)
    assert f"{fewest!r} has {report.counts['test'][fewest]}" in note.message


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("empty.jpg", b"", "empty"),
        ("words.jpg", b"these are words", "not-an-image"),
        ("notes.txt", b"these are words", "not-an-image"),
        ("half.jpg", None, "truncated"),
    ],
)
def test_a_broken_file_is_left_out_counted_and_named(
    picture: Picture,
    folder_of: FolderOf,
    tmp_path: Path,
    name: str,
    content: bytes | None,
    kind: str,
) -> None:
    root = folder_of()
    path = root / "cat" / name
    if content is None:
        picture(1, 200, 200).save(path)
        content = path.read_bytes()[:2_000]
    path.write_bytes(content)
    report = report_on(root, tmp_path)
    assert (report.files, report.broken, report.left_out) == (61, 1, 0)
    (finding,) = of_kind(report, kind)
    assert finding.paths == (str(path),)
    assert sum(sum(counts.values()) for counts in report.counts.values()) == 60


def test_copies_in_one_class_are_a_note_and_stay_on_one_side(
    folder_of: FolderOf, tmp_path: Path
) -> None:
    root = folder_of()
    shutil.copy(root / "cat" / "000000.png", root / "cat" / "copy.png")
    report = report_on(root, tmp_path)
    (finding,) = of_kind(report, "exact-duplicate")
    assert finding.severity == "note"
    assert [Path(path).name for path in finding.paths] == ["000000.png", "copy.png"]
    assert report.left_out == 0


def test_copies_given_on_two_sides_are_reported_and_the_train_copy_left_out(
    folder_of: FolderOf, tmp_path: Path
) -> None:
    for number, side in enumerate(("train", "val", "test")):
        folder_of(name=f"set/{side}", seed=100 * number)
    root = tmp_path / "set"
    shutil.copy(root / "test" / "cat" / "000200.png", root / "train" / "cat" / "leak.png")
    loaded = load_manifest(str(root), cache=tmp_path)
    (finding,) = of_kind(loaded.report, "duplicate-across-splits")
    assert "kept on test" in finding.message
    assert loaded.report.left_out == 1
    assert "leak.png" not in {sample.path.name for sample in loaded.manifest.samples}


def test_conflicting_labels_are_left_out_and_name_both(folder_of: FolderOf, tmp_path: Path) -> None:
    root = folder_of()
    shutil.copy(root / "cat" / "000000.png", root / "dog" / "other.png")
    report = report_on(root, tmp_path)
    (finding,) = of_kind(report, "conflicting-labels")
    assert "'cat', 'dog'" in finding.message
    assert report.left_out == 2
    assert of_kind(report, "exact-duplicate") == []


def test_near_duplicates_are_found_on_one_side_and_across_two(
    picture: Picture, folder_of: FolderOf, tmp_path: Path
) -> None:
    for number, side in enumerate(("train", "valid", "test")):
        folder_of(name=f"set/{side}", seed=100 * number)
    root = tmp_path / "set"
    for key in (500, 600):
        picture(key, 120, 100).save(root / "train" / "cat" / f"{key}.png")
    picture(500, 120, 100).save(root / "train" / "cat" / "500.jpg", quality=85)
    picture(600, 120, 100).resize((60, 50)).save(root / "test" / "cat" / "600-small.png")
    report = report_on(root, tmp_path)
    (same_side,) = of_kind(report, "near-duplicate")
    (across,) = of_kind(report, "near-duplicate-across-splits")
    assert {Path(path).name for path in same_side.paths} == {"500.png", "500.jpg"}
    assert {Path(path).name for path in across.paths} == {"600.png", "600-small.png"}
    assert (same_side.severity, across.severity) == ("note", "warning")


def test_a_group_on_two_given_sides_is_a_warning(folder_of: FolderOf, tmp_path: Path) -> None:
    rows = ["path,label,split,group"]
    for number, path in enumerate(sorted(folder_of(images=20).rglob("*.png"))):
        split = ("train", "valid", "test")[number % 3]
        rows.append(f"{path},{path.parent.name},{split},{'p' if number < 2 else number}")
    table = tmp_path / "images.csv"
    table.write_text("\n".join(rows))
    (finding,) = of_kind(report_on(table, tmp_path), "group-across-splits")
    assert "'p'" in finding.message
    assert len(finding.paths) == 2


def test_a_class_that_misses_a_side_is_flagged_with_a_seed_that_helps(
    folder_of: FolderOf, tmp_path: Path
) -> None:
    root = folder_of(images=60)
    folder_of(("rare",), images=5, seed=999)
    missing = {
        seed: of_kind(report_on(root, tmp_path, seed), "missing-on-side") for seed in range(8)
    }
    flagged = [found[0] for found in missing.values() if found]
    assert flagged
    advised = {finding.message.split("with seed=")[1].split()[0] for finding in flagged}
    assert len(advised) == 1
    assert of_kind(report_on(root, tmp_path, int(advised.pop())), "missing-on-side") == []


def test_a_class_whose_files_are_all_broken_is_an_error_that_comes_first(
    folder_of: FolderOf, tmp_path: Path
) -> None:
    root = folder_of()
    (root / "ghost").mkdir()
    (root / "ghost" / "a.png").touch()
    report = report_on(root, tmp_path)
    assert report.findings[0].severity == "error"
    assert "'ghost'" in report.findings[0].message
    assert set(report.counts["train"]) == {"cat", "dog"}


def test_few_samples_and_imbalance_are_warned_of(folder_of: FolderOf, tmp_path: Path) -> None:
    root = folder_of(images=90)
    folder_of(("rare",), images=8, seed=999)
    report = report_on(root, tmp_path)
    assert "'rare'" in of_kind(report, "few-samples")[0].message
    assert "'rare'" in of_kind(report, "imbalance")[0].message


def test_odd_sizes_and_modes_are_noted(
    picture: Picture, folder_of: FolderOf, tmp_path: Path
) -> None:
    root = folder_of()
    exif = Image.Exif()
    exif[0x0112] = 3
    cat = root / "cat"
    picture(900).convert("P").save(cat / "palette.png")
    picture(901).convert("CMYK").save(cat / "cmyk.jpg")
    wide = np.random.default_rng(0).integers(0, 65_536, (40, 40)).astype(np.uint16)
    Image.fromarray(wide).save(cat / "sixteen.png")
    picture(902).convert("RGBA").save(cat / "alpha.png")
    picture(903).save(cat / "turned.jpg", exif=exif)
    picture(904).save(cat / "moving.gif", save_all=True, append_images=[picture(905)])
    picture(906, 400, 40).save(cat / "strip.png")
    report = report_on(root, tmp_path)
    noted = {
        Path(path).name: finding.kind
        for finding in report.findings
        for path in finding.paths
        if finding.severity == "note" and len(finding.paths) < 10
    }
    modes = ("palette.png", "cmyk.jpg", "sixteen.png", "alpha.png", "turned.jpg", "moving.gif")
    assert {noted.get(name) for name in modes} == {"odd-mode"}
    assert noted["strip.png"] == "odd-size"
    assert f"    {cat / 'strip.png'}" in report.lines()


def test_images_outside_the_class_folders_are_reported(
    picture: Picture, folder_of: FolderOf, tmp_path: Path
) -> None:
    root = folder_of()
    picture(1).save(root / "loose.png")
    (finding,) = of_kind(report_on(root, tmp_path), "stray")
    assert finding.paths == (str(root / "loose.png"),)


def test_the_report_is_json_and_short_text(folder_of: FolderOf, tmp_path: Path) -> None:
    root = folder_of(images=30)
    for number in range(50):
        (root / "cat" / f"broken-{number}.png").touch()
    report = report_on(root, tmp_path)
    told = json.loads(json.dumps(report.to_dict()))
    assert told["broken"] == 50
    assert len(told["findings"]) >= 50
    lines = report.lines()
    assert len(lines) < 30
    assert "50 broken" in lines[0]
    assert any("45 more" in line for line in lines)


def test_no_seed_is_advised_where_none_can_help(folder_of: FolderOf, tmp_path: Path) -> None:
    root = folder_of(images=1)
    with pytest.raises(DataError, match="no image is left on") as raised:
        report_on(root, tmp_path)
    assert "seed=" not in str(raised.value)


def test_an_empty_side_is_an_error_that_names_a_seed_which_fills_it(
    folder_of: FolderOf, tmp_path: Path
) -> None:
    root = folder_of(images=4)
    messages = []
    for seed in range(30):
        try:
            report_on(root, tmp_path, seed)
        except DataError as error:
            messages.append(str(error))
    assert messages
    assert "no image is left on" in messages[0]
    advised = messages[0].splitlines()[-1].split("seed=")[1].split(",")[0]
    assert sum(report_on(root, tmp_path, int(advised)).counts["valid"].values()) >= 2
