"""torchvision's named classification sets, written once as image files."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

from sft_mlflow.data.readers import folder
from sft_mlflow.data.readers.listing import Listing
from sft_mlflow.data.readers.materialised import materialise
from sft_mlflow.data.truth import TaskName
from sft_mlflow.errors import DataError, first_line


@dataclass(frozen=True)
class NamedSet:
    """How torchvision spells one data set.

    sides: constructor arguments by side, {"": {}} where the set has no split; archives: what it
    downloads, relative to its root.
    """

    class_name: str
    sides: Mapping[str, Mapping[str, Any]]
    archives: tuple[str, ...]
    constants: Mapping[str, Any] = field(default_factory=dict)


_BY_FLAG = {"train": {"train": True}, "test": {"train": False}}
_BY_NAME = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE = {"train": {"split": "train"}, "valid": {"split": "val"}, "test": {"split": "test"}}


def _idx_files(folder_name: str) -> tuple[str, ...]:
    return tuple(
        f"{folder_name}/raw/{part}-{kind}.gz"
        for part in ("train", "t10k")
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )


SETS: dict[str, NamedSet] = {
    "cifar10": NamedSet("CIFAR10", _BY_FLAG, ("cifar-10-python.tar.gz",)),
    "cifar100": NamedSet("CIFAR100", _BY_FLAG, ("cifar-100-python.tar.gz",)),
    "mnist": NamedSet("MNIST", _BY_FLAG, _idx_files("MNIST")),
    "fashion_mnist": NamedSet("FashionMNIST", _BY_FLAG, _idx_files("FashionMNIST")),
    "kmnist": NamedSet("KMNIST", _BY_FLAG, _idx_files("KMNIST")),
    "svhn": NamedSet("SVHN", _BY_NAME, ("train_32x32.mat", "test_32x32.mat")),
    "stl10": NamedSet("STL10", _BY_NAME, ("stl10_binary.tar.gz",)),
    "flowers102": NamedSet(
        "Flowers102",
        _THREE,
        (
            "flowers-102/102flowers.tgz",
            "flowers-102/imagelabels.mat",
            "flowers-102/setid.mat",
        ),
    ),
    "oxford_iiit_pet": NamedSet(
        "OxfordIIITPet",
        {"train": {"split": "trainval"}, "test": {"split": "test"}},
        ("oxford-iiit-pet/images.tar.gz", "oxford-iiit-pet/annotations.tar.gz"),
    ),
    "food101": NamedSet("Food101", _BY_NAME, ("food-101.tar.gz",)),
    "eurosat": NamedSet("EuroSAT", {"": {}}, ("eurosat/EuroSAT.zip",)),
    "dtd": NamedSet("DTD", _THREE, ("dtd/dtd-r1.0.1.tar.gz",)),
    "fgvc_aircraft": NamedSet("FGVCAircraft", _THREE, ("fgvc-aircraft-2013b.tar.gz",)),
    "gtsrb": NamedSet(
        "GTSRB",
        _BY_NAME,
        (
            "gtsrb/GTSRB-Training_fixed.zip",
            "gtsrb/GTSRB_Final_Test_Images.zip",
            "gtsrb/GTSRB_Final_Test_GT.zip",
        ),
    ),
    # The validation images of ImageNet are what everyone tests this subset on.
    "imagenette": NamedSet(
        "Imagenette",
        {"train": {"split": "train"}, "test": {"split": "val"}},
        ("imagenette2-160.tgz",),
        {"size": "160px"},
    ),
}
NAMES = tuple(SETS)


def tasks(uri: str) -> tuple[TaskName, ...]:
    """Classification for the name of one of the sets."""
    return ("classification",) if uri in SETS else ()


def read(uri: str, *, cache: Path, task: TaskName, ignored: frozenset[str]) -> Listing:
    """The set as files in cache/NAME/{train,valid,test}/CLASS, downloaded at the first use.

    Sets that torchvision holds as arrays become PNG files; image files are kept as they are.
    A slash in a class name becomes a dash.
    Raises DataError that says which file to put where, if the download fails.
    """
    cache = cache.expanduser().resolve()

    def write(root: Path) -> None:
        for side, data in _downloaded(uri, cache / "downloads" / uri).items():
            write_files(data, root / side)

    root = materialise(cache / uri, write)
    return replace(
        folder.read(str(root), cache=cache, task=task, ignored=ignored), name=uri, uri=uri
    )


def write_files(data: Any, root: Path) -> None:
    """Writes a torchvision set of (PIL image, class index) as root/CLASS/NUMBER.* files."""
    names = getattr(data, "classes", None)
    originals = _original_files(data)
    for number in range(len(data)):
        if originals is None:
            image, index = data[number]
            source = None
        else:
            source, index = originals[number]
        target = root / _class_name(names, index)
        target.mkdir(parents=True, exist_ok=True)
        if source is None:
            image.save(target / f"{number:06d}.png")
        else:
            _link_or_copy(source, target / f"{number:06d}{source.suffix.lower()}")


def _class_name(names: Sequence[Any] | None, index: int) -> str:
    if names is None:
        return str(index)
    # Imagenette gives a tuple of synonyms, best known first.
    name = names[index][0] if isinstance(names[index], tuple) else names[index]
    return str(name).replace("/", "-")


def _downloaded(name: str, root: Path) -> dict[str, Any]:
    """torchvision's data set objects by side."""
    from torchvision import datasets  # only who asks for such a set waits for torch

    spelled = SETS[name]
    root.mkdir(parents=True, exist_ok=True)
    make = getattr(datasets, spelled.class_name)
    with warnings.catch_warnings():
        # torchvision sets numpy's shape attribute on CIFAR's pickles, and the like.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return {
                side: make(str(root), download=True, **arguments, **spelled.constants)
                for side, arguments in spelled.sides.items()
            }
        except (URLError, OSError, RuntimeError) as error:
            places = "\n".join(
                f"  {Path(file).name}  ->  {(root / file).parent}" for file in spelled.archives
            )
            raise DataError(
                f"{name}: could not be downloaded ({first_line(error)}).\n"
                f"Without a network, get these files elsewhere and put each in its folder:\n"
                f"{places}\nThen run the same command again."
            ) from error


def _original_files(data: Any) -> list[tuple[Path, int]] | None:
    """(file, class index) of each image where torchvision reads files, else None.

    torchvision has no public name for these; without them the images would be decoded and
    written again, at several times the size.
    """
    for name in ("samples", "_samples"):
        if hasattr(data, name):
            return [(Path(path), int(index)) for path, index in getattr(data, name)]
    for name in ("_image_files", "_images"):
        if hasattr(data, name) and hasattr(data, "_labels"):
            pairs = zip(getattr(data, name), data._labels, strict=True)
            return [(Path(path), int(index)) for path, index in pairs]
    return None


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Some file systems have no hard links.
        shutil.copyfile(source, target)
