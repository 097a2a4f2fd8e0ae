"""What every reader owes. A new reader is tested by being listed in SOURCES."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from sft_mlflow.data.readers import READERS, Listing, read, torchvision_sets
from sft_mlflow.data.readers.materialised import materialise
from sft_mlflow.data.scan import scan
from sft_mlflow.errors import DataError, OptionsError


def write_images(root: Path, sides: tuple[str, ...] = ("",), images: int = 3) -> Path:
    random = np.random.default_rng(0)
    for side in sides:
        for label in ("cat", "dog"):
            folder = root / side / label
            folder.mkdir(parents=True)
            for number in range(images):
                pixels = random.integers(0, 256, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def write_csv(root: Path, suffix: str = ".csv") -> Path:
    write_images(root)
    path = root / f"images{suffix}"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",")
        writer.writerow(["path", "label", "split", "group"])
        for image in sorted(root.rglob("*.png")):
            writer.writerow([image.relative_to(root), image.parent.name, "", "g"])
    return path


def write_parquet(root: Path) -> Path:
    write_images(root)
    images = sorted(root.rglob("*.png"))
    table = pa.table(
        {
            "path": [str(image.relative_to(root)) for image in images],
            "label": [image.parent.name for image in images],
        }
    )
    pq.write_table(table, root / "images.parquet")
    return root / "images.parquet"


class Drawn:
    """A data set object as torchvision hands it out: (image, class index), and class names."""

    classes = ("T-shirt/top", "Bag")

    def __len__(self) -> int:
        return 6

    def __getitem__(self, number: int) -> tuple[Image.Image, int]:
        return Image.new("L", (8, 8), 40 * number), number % 2


def write_named_set(root: Path) -> Path:
    """The cache of `cifar10` as it stands once downloaded."""

    def write(folder: Path) -> None:
        for side in ("train", "test"):
            torchvision_sets.write_files(Drawn(), folder / side)

    materialise(root / "cifar10", write)
    return root


SOURCES: dict[str, Callable[[Path], str]] = {
    "class folders": lambda root: str(write_images(root)),
    "split folders": lambda root: str(write_images(root, ("train", "val", "test"))),
    "csv": lambda root: str(write_csv(root)),
    "tsv": lambda root: str(write_csv(root, ".tsv")),
    "parquet": lambda root: str(write_parquet(root)),
    "digits": lambda root: "digits",
    "torchvision": lambda root: write_named_set(root) and "cifar10",
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())
class TestEveryReader:
    def listing(self, source: Callable[[Path], str], root: Path) -> Listing:
        return read(source(root), cache=root)

    def test_lists_files_that_are_there_by_absolute_path(
        self, source: Callable[[Path], str], tmp_path: Path
    ) -> None:
        entries = self.listing(source, tmp_path).entries
        assert entries
        assert all(entry.path.is_absolute() and entry.path.is_file() for entry in entries)
        assert len({entry.path for entry in entries}) == len(entries)

    def test_lists_the_same_in_the_same_order_again(
        self, source: Callable[[Path], str], tmp_path: Path
    ) -> None:
        uri = source(tmp_path)
        assert read(uri, cache=tmp_path) == read(uri, cache=tmp_path)

    def test_every_listed_image_can_be_read(
        self, source: Callable[[Path], str], tmp_path: Path
    ) -> None:
        entries = self.listing(source, tmp_path).entries
        assert all(fact.problem is None for fact in scan([e.path for e in entries[:50]]))

    def test_has_a_name_a_uri_and_two_labels_at_least(
        self, source: Callable[[Path], str], tmp_path: Path
    ) -> None:
        listing = self.listing(source, tmp_path)
        assert listing.name
        assert listing.uri
        assert len({entry.label for entry in listing.entries}) >= 2

    def test_one_reader_accepts_it(self, source: Callable[[Path], str], tmp_path: Path) -> None:
        uri = source(tmp_path)
        assert sum(bool(reader.tasks(uri)) for reader in READERS) == 1


class TestFolder:
    def test_split_folders_give_the_sides_under_any_of_their_names(self, tmp_path: Path) -> None:
        write_images(tmp_path, ("Training", "validation", "test"))
        found = {(e.path.parts[-3], e.split) for e in read(str(tmp_path), cache=tmp_path).entries}
        assert found == {("Training", "train"), ("validation", "valid"), ("test", "test")}

    def test_class_folders_give_no_sides(self, tmp_path: Path) -> None:
        entries = read(str(write_images(tmp_path)), cache=tmp_path).entries
        assert {entry.split for entry in entries} == {None}

    def test_train_may_be_a_class_among_others(self, tmp_path: Path) -> None:
        write_images(tmp_path)
        (tmp_path / "dog").rename(tmp_path / "train")
        entries = read(str(tmp_path), cache=tmp_path).entries
        assert {entry.label for entry in entries} == {"cat", "train"}

    def test_split_folders_beside_others_are_refused(self, tmp_path: Path) -> None:
        write_images(tmp_path, ("train", "test", "backup"))
        with pytest.raises(DataError, match="'backup'"):
            read(str(tmp_path), cache=tmp_path)

    def test_hidden_files_and_clutter_are_not_listed_and_anything_else_is(
        self, tmp_path: Path
    ) -> None:
        write_images(tmp_path)
        for name in (".hidden.png", "Thumbs.db", ".DS_Store", "notes.txt", "photo.HEIC"):
            (tmp_path / "cat" / name).touch()
        (tmp_path / ".git").mkdir()
        (tmp_path / ".git" / "a.png").touch()
        names = {entry.path.name for entry in read(str(tmp_path), cache=tmp_path).entries}
        assert names == {"0.png", "1.png", "2.png", "notes.txt", "photo.HEIC"}

    def test_folders_within_a_class_belong_to_it(self, tmp_path: Path) -> None:
        write_images(tmp_path)
        (tmp_path / "cat" / "2024" / "may").mkdir(parents=True)
        (tmp_path / "cat" / "0.png").rename(tmp_path / "cat" / "2024" / "may" / "0.png")
        entries = read(str(tmp_path), cache=tmp_path).entries
        assert sum(entry.label == "cat" for entry in entries) == 3

    def test_a_link_to_a_folder_above_is_walked_once(self, tmp_path: Path) -> None:
        write_images(tmp_path)
        (tmp_path / "cat" / "loop").symlink_to(tmp_path / "cat")
        assert len(read(str(tmp_path), cache=tmp_path).entries) == 6

    def test_images_outside_class_folders_are_strays(self, tmp_path: Path) -> None:
        write_images(tmp_path)
        (tmp_path / "loose.jpg").touch()
        (tmp_path / "README.txt").touch()
        assert read(str(tmp_path), cache=tmp_path).strays == (tmp_path / "loose.jpg",)

    def test_an_empty_folder_and_a_single_class_are_data_errors(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no images found"):
            read(str(tmp_path), cache=tmp_path)
        write_images(tmp_path / "photos")
        with pytest.raises(DataError, match="only one class, 'photos'"):
            read(str(tmp_path), cache=tmp_path)


class TestTable:
    def written(self, tmp_path: Path, text: str) -> str:
        path = tmp_path / "images.csv"
        path.write_text(text)
        return str(path)

    def test_relative_paths_start_at_the_table(self, tmp_path: Path) -> None:
        uri = self.written(tmp_path, "path,label\na/1.png,x\n/elsewhere/2.png,y\n")
        paths = [entry.path for entry in read(uri, cache=tmp_path).entries]
        assert paths == [tmp_path / "a" / "1.png", Path("/elsewhere/2.png")]

    def test_split_and_group_are_optional_in_each_row(self, tmp_path: Path) -> None:
        uri = self.written(tmp_path, "label,path,split,group\nx,1.png,val,\ny,2.png,,g1\n")
        entries = read(uri, cache=tmp_path).entries
        assert [(e.label, e.split, e.group) for e in entries] == [
            ("x", "valid", None),
            ("y", None, "g1"),
        ]

    def test_spreadsheet_marks_blank_lines_and_quoted_commas_are_read(self, tmp_path: Path) -> None:
        uri = self.written(tmp_path, '\ufeffpath,label\n"a,1.png",x\n\n,\n2.png,"y,z"\n')
        entries = read(uri, cache=tmp_path).entries
        assert [(e.path.name, e.label) for e in entries] == [("a,1.png", "x"), ("2.png", "y,z")]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("file,label\n1.png,x\n", r"images\.csv:1: no column 'path'"),
            ("", r"images\.csv:1: no column 'path' and no column 'label'"),
            ("path,label\n1.png,x\n2.png,\n", r"images\.csv:3: no label for '2\.png'"),
            ("path,label\n1.png,x\n2.png\n", r"images\.csv:3: no label"),
            ("path,label\n,x\n", r"images\.csv:2: no path"),
            (
                "path,label,split\n1.png,x,trian\n",
                r"images\.csv:2: split 'trian'.*did you mean 'train'",
            ),
            ("path,label,label\n1.png,x,y\n", r"column 'label' is there twice"),
            ("path,label\n", "no images found"),
        ],
    )
    def test_a_wrong_row_is_named_by_file_and_line(
        self, tmp_path: Path, text: str, message: str
    ) -> None:
        with pytest.raises(DataError, match=message):
            read(self.written(tmp_path, text), cache=tmp_path)

    def test_all_wrong_rows_are_told_at_once(self, tmp_path: Path) -> None:
        uri = self.written(tmp_path, "path,label\n" + "1.png,\n" * 15)
        with pytest.raises(DataError, match=r":2: no label[\s\S]*:11: no label[\s\S]*and 5 more"):
            read(uri, cache=tmp_path)

    def test_numbers_in_parquet_are_labels_too(self, tmp_path: Path) -> None:
        table = pa.table({"path": ["1.png", "2.png"], "label": [7, 3], "split": ["train", None]})
        pq.write_table(table, tmp_path / "images.parquet")
        entries = read(str(tmp_path / "images.parquet"), cache=tmp_path).entries
        assert [(e.label, e.split) for e in entries] == [("7", "train"), ("3", None)]

    def test_what_is_no_table_is_a_data_error(self, tmp_path: Path) -> None:
        for name, content in (("a.parquet", b"words"), ("a.csv", b"\xff\xfe\x00")):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(DataError, match=name):
                read(str(tmp_path / name), cache=tmp_path)


class TestDigits:
    def test_files_hold_the_pixels_and_labels_of_scikit_learn(self, tmp_path: Path) -> None:
        bunch = load_digits()
        entries = read("digits", cache=tmp_path).entries
        assert len(entries) == 1797
        for entry in entries[::50]:
            number = int(entry.path.stem)
            with Image.open(entry.path) as image:
                pixels = np.asarray(image, dtype=float)
            assert entry.label == str(bunch.target[number])
            assert np.abs(pixels * 16 / 255 - bunch.images[number]).max() <= 16 / 510

    def test_a_write_that_fails_leaves_nothing_behind(self, tmp_path: Path) -> None:
        def fails(folder: Path) -> None:
            (folder / "half").touch()
            raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"):
            materialise(tmp_path / "set", fails)
        assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []

    @pytest.mark.parametrize("task", ["classification", "segmentation"])
    def test_checking_it_loads_no_torch(self, task: str, tmp_path: Path) -> None:
        program = (
            "import sys; from sft_mlflow.cli import _group; "
            f"words = ['check', '--data=digits', '--task={task}']; "
            "assert not _group.main(words, standalone_mode=False); "
            "assert not {'torch', 'torchvision', 'mlflow', 'optuna'} & set(sys.modules)"
        )
        environment = os.environ | {"SFT_MLFLOW_HOME": str(tmp_path)}
        subprocess.run([sys.executable, "-c", program], check=True, env=environment)


class TestTorchvisionSets:
    def test_arrays_become_png_files_below_train_and_test(self, tmp_path: Path) -> None:
        entries = read("cifar10", cache=write_named_set(tmp_path)).entries
        assert {(e.split, e.label) for e in entries} == {
            (split, label) for split in ("train", "test") for label in ("T-shirt-top", "Bag")
        }
        assert {entry.path.suffix for entry in entries} == {".png"}

    def test_image_files_are_kept_as_they_are(self, tmp_path: Path) -> None:
        from torchvision.datasets import ImageFolder

        original = write_images(tmp_path / "original")
        torchvision_sets.write_files(ImageFolder(original), tmp_path / "kept")
        before, after = (
            sorted(path.read_bytes() for path in (tmp_path / name).rglob("*.png"))
            for name in ("original", "kept")
        )
        assert before == after

    @pytest.mark.parametrize("name", torchvision_sets.NAMES)
    def test_torchvision_knows_every_set_of_the_list(self, name: str) -> None:
        from torchvision import datasets

        assert hasattr(datasets, torchvision_sets.SETS[name].class_name)

    @pytest.mark.parametrize(
        ("name", "file", "folder"),
        [
            ("cifar10", "cifar-10-python.tar.gz", "downloads/cifar10"),
            ("mnist", "train-images-idx3-ubyte.gz", "downloads/mnist/MNIST/raw"),
            ("flowers102", "102flowers.tgz", "downloads/flowers102/flowers-102"),
        ],
    )
    def test_without_a_network_the_error_says_which_file_goes_where(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str, folder: str
    ) -> None:
        # Nothing listens on the discard port, so every download is refused at once.
        for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(variable, "http://127.0.0.1:9")
        with pytest.raises(DataError) as raised:
            read(name, cache=tmp_path)
        assert f"{file}  ->  {tmp_path / folder}\n" in str(raised.value)
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("uri", "meant"),
    [
        ("digit", "'digits'"),
        ("cifar-10", "'cifar10'"),
        ("MNIST", "'mnist'"),
        ("foood101", "'food101'"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(tmp_path: Path, uri: str, meant: str) -> None:
    with pytest.raises(OptionsError, match=f"Did you mean {meant}"):
        read(uri, cache=tmp_path)


def test_a_mistyped_folder_suggests_the_one_beside_it(tmp_path: Path) -> None:
    write_images(tmp_path / "flowers")
    with pytest.raises(OptionsError, match=f"Did you mean '{tmp_path / 'flowers'}'"):
        read(str(tmp_path / "flower"), cache=tmp_path)
