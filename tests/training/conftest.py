"""Real digits of scikit-learn, small enough to train on in a second."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from sft_mlflow.data.manifest import Sample
from sft_mlflow.reuse.chain import Chain, Road, Views
from sft_mlflow.reuse.store import Store
from sft_mlflow.sources.network import StagedNetwork, network_from
from sft_mlflow.sources.source_model import Preprocessing
from sft_mlflow.sources.uri import resolve
from sft_mlflow.tasks.base import Frame
from sft_mlflow.tasks.classification import CLASSIFICATION
from sft_mlflow.tasks.classification.judging import figures_of
from sft_mlflow.training.batches import ChainBatches
from sft_mlflow.training.checkpoints import Checkpoints
from sft_mlflow.training.events import FitEnded, FitEvent
from sft_mlflow.training.fit import fit
from sft_mlflow.training.precision import Arithmetic
from sft_mlflow.training.probe import Features, Probe, fit_probe
from sft_mlflow.training.recipe import Precision, Recipe
from tests.recipes import RECIPE

CPU = torch.device("cpu")
CLASSES = ("0", "1", "2")
PREPROCESSING = Preprocessing(32, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
FRAME = Frame(CLASSES, PREPROCESSING.pixels)
FLOAT32 = Arithmetic("float32", "cpu")


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Images of 32 pixels are too little to share, and idle threads take time from others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Side:
    """Pixels (N, 32, 32, 3) uint8 and class indices (N,) int64, and the same as image files."""

    pixels: NDArray[np.uint8]
    targets: NDArray[np.int64]
    folder: Path

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        samples = []
        for pixels, target in zip(self.pixels, self.targets, strict=True):
            content = io.BytesIO()
            Image.fromarray(pixels).save(content, "png")
            digest = hashlib.sha256(content.getvalue()).hexdigest()
            path = self.folder / f"{digest}.png"
            path.write_bytes(content.getvalue())
            samples.append(Sample(path, str(target), digest, "train"))
        return tuple(samples)

    def only(self, rows: NDArray[np.intp] | slice) -> Side:
        return Side(self.pixels[rows], self.targets[rows], self.folder)


@dataclass(frozen=True)
class Digits:
    train: Side
    valid: Side

    def batches(self, recipe: Recipe, network: StagedNetwork | None = None) -> ChainBatches:
        """Batches that begin where the recipe's trained part does, or at the pixels."""
        whole = network or plain_network()
        point = whole.full_depth - recipe.depth if network else 0
        store = Store(self.train.folder / "store", budget_bytes=10**9)
        views = Views(recipe.augmentation, recipe.seed)

        def chain(side: Side, precision: Precision) -> Chain:
            # Nothing but pixels is kept: networks of tests have other weights each.
            road = Road(whole, "", PREPROCESSING, Arithmetic(precision, "cpu"), CPU)
            return Chain(side.samples, road, views, store, kept=(0,))

        return ChainBatches(
            train=chain(self.train, recipe.precision),
            valid=chain(self.valid, "float32"),
            learning=CLASSIFICATION.learning,
            frame=FRAME,
            point=point,
            views=recipe.view_numbers,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
        )


@cache
def plain_network() -> StagedNetwork:
    return network_from(resolve(RECIPE.source), len(CLASSES))


def side(rows: slice, folder: Path) -> Side:
    """Digits 0, 1 and 2, four times as large as they are."""
    pictures = load_digits(n_class=len(CLASSES))
    images = np.kron(pictures.images[rows], np.ones((4, 4))) * 255 / 16
    pixels = np.repeat(images.astype(np.uint8)[..., None], 3, axis=3)
    return Side(pixels, pictures.target[rows].astype(np.int64), folder)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    folder = tmp_path_factory.mktemp("digits")
    return Digits(side(slice(0, 64), folder), side(slice(64, 112), folder))


@pytest.fixture(scope="session")
def settled() -> dict[str, torch.Tensor]:
    """Weights whose BatchNorm has the statistics of the digits, as a pretrained network has."""
    network = network_from(resolve(RECIPE.source), len(CLASSES))
    for module in network.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train().momentum = 1.0
    torch.manual_seed(0)
    with torch.no_grad():
        images = (
            torch.from_numpy(side(slice(112, 176), Path()).pixels).permute(0, 3, 1, 2) / 127.5 - 1
        )
        network.model(images)
    torch.nn.init.normal_(network.head.weight, std=0.05)
    torch.nn.init.zeros_(network.head.bias)
    return network.model.state_dict()


@pytest.fixture
def new_network(settled: dict[str, torch.Tensor]) -> Callable[[], StagedNetwork]:
    def build() -> StagedNetwork:
        network = network_from(resolve(RECIPE.source), len(CLASSES))
        network.model.load_state_dict(settled)
        return network

    return build


@dataclass(frozen=True)
class Fitted:
    """A whole fit: its events, its end, and the weights after it."""

    events: list[FitEvent]
    ended: FitEnded
    evidence: NDArray[np.float32]
    weights: dict[str, torch.Tensor]


@pytest.fixture
def run(
    digits: Digits, new_network: Callable[[], StagedNetwork], tmp_path: Path
) -> Callable[..., Fitted]:
    """Fits a new network, with other options than RECIPE's if they are given."""

    def start(
        folder: Path | None = None,
        stop: Callable[[FitEvent], bool] = lambda event: False,
        data: Digits = digits,
        network: StagedNetwork | None = None,
        **options: object,
    ) -> Fitted:
        recipe = replace(RECIPE, **options)  # type: ignore[arg-type]
        network = network or new_network()
        target = folder or tmp_path / f"fit-{len(list(tmp_path.iterdir()))}"
        generator = fit(
            network,
            recipe,
            data.batches(recipe, network),
            CLASSIFICATION,
            FRAME,
            Checkpoints(target, every_seconds=0),
            Arithmetic(recipe.precision, "cpu"),
            CPU,
        )
        events: list[FitEvent] = []
        answer: bool | None = None
        while True:
            try:
                event = generator.send(answer)
            except StopIteration as end:
                weights = {k: v.clone() for k, v in network.model.state_dict().items()}
                return Fitted(events, end.value.ended, end.value.evidence, weights)
            events.append(event)
            answer = stop(event)

    return start


@pytest.fixture(scope="session")
def train_features(digits: Digits, settled: dict[str, torch.Tensor]) -> tuple[Features, Features]:
    """Features of the training and of the validation side."""
    network = network_from(resolve(RECIPE.source), len(CLASSES))
    network.model.load_state_dict(settled)
    both = []
    for one in (digits.train, digits.valid):
        batches = list(Digits(one, one).batches(replace(RECIPE, depth=0), network).validation())
        values = torch.cat([batch.values[0] for batch in batches])
        both.append(Features([values.numpy()], values.shape[1], one.targets))
    return both[0], both[1]


@pytest.fixture(scope="session")
def probe(train_features: tuple[Features, Features]) -> Probe:
    return fit_probe(*train_features, len(CLASSES), None, figures_of, "accuracy")
