"""Values along the road are the same whether they are kept or computed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from sft_mlflow.data import pixels
from sft_mlflow.data.manifest import Sample
from sft_mlflow.data.pixels import PixelSpec, pixels_of
from sft_mlflow.data.scan import scan
from sft_mlflow.errors import DataError
from sft_mlflow.reuse import chain as chains
from sft_mlflow.reuse import store as stores
from sft_mlflow.reuse.chain import AS_THEY_ARE, Chain, Road, Views
from sft_mlflow.reuse.store import Store
from sft_mlflow.sources import architectures
from sft_mlflow.sources.feature_maps import network_with_maps
from sft_mlflow.sources.network import bare_network
from sft_mlflow.sources.source_model import Architecture, Preprocessing
from sft_mlflow.training.precision import Arithmetic
from sft_mlflow.training.randomness import keyed

CPU = torch.device("cpu")
SIZE = 64
FAMILIES = (
    "resnet18",
    "efficientnet_b0",
    "convnext_tiny",
    "vit_b_16",
    "swin_t",
    "mobilenet_v3_small",
    "densenet121",
    "regnet_x_400mf",
    "vgg11",
)
ALL = np.arange(6)


Samples = tuple[Sample, ...]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for number in ALL:
        drawn = generator.integers(0, 256, (72, 90, 3), dtype=np.uint8)
        Image.fromarray(drawn).save(folder / f"{number}.png")
    paths = sorted(folder.iterdir())
    facts = scan(paths)
    return tuple(Sample(p, "a", f.digest, "train") for p, f in zip(paths, facts, strict=True))


def road_of(name: str, size: int = SIZE) -> Road:
    torch.manual_seed(0)
    network = bare_network(Architecture("torchvision", name), classes=3)
    network.model.to(memory_format=torch.channels_last)
    preprocessing = Preprocessing(size, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return Road(network, name, preprocessing, Arithmetic("float32", "cpu"), CPU)


@pytest.fixture(scope="module")
def small() -> Road:
    return road_of("shufflenet_v2_x0_5")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", budget_bytes=10**10)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Road:
    return road_of(request.param, size=224 if request.param == "vit_b_16" else SIZE)


def test_stored_and_live_activations_agree_at_every_cut(
    family: Road, images: Samples, store: Store
) -> None:
    road = family
    some = np.array([4, 1])
    points = range(1, road.network.full_depth + 1)
    live = Chain(images, road, AS_THEY_ARE, store, kept=())
    # Kept at every point, each is computed from the one below and read again.
    keeping = Chain(images, road, AS_THEY_ARE, store, kept=points)
    list(keeping.fill(points[-1]))
    reading = Chain(images, road, AS_THEY_ARE, store, kept=points)
    for point in points:
        assert not len(reading.absent(0, point))
        stored, computed = reading.values(some, 0, point), live.values(some, 0, point)
        if stored.ndim == 4:
            assert stored.stride() == computed.stride()
        assert torch.allclose(stored, computed, rtol=1e-5, atol=1e-5)


def test_loss_and_gradients_of_the_first_step_are_those_without_the_store(
    family: Road, images: Samples, store: Store
) -> None:
    road = family
    network = road.network
    middle = network.full_depth // 2
    network.freeze(network.full_depth - middle, statistics=False)
    suffix = network.suffix(network.full_depth - middle)
    list(Chain(images, road, AS_THEY_ARE, store, kept=(middle,)).fill(middle))

    def first_step(kept: tuple[int, ...]) -> tuple[float, torch.Tensor]:
        network.model.zero_grad()
        chain = Chain(images, road, AS_THEY_ARE, store, kept=kept)
        with keyed(0, "step"):
            outputs = suffix(*chain.inputs(ALL, 0, middle))
        loss = F.cross_entropy(outputs, torch.from_numpy(ALL % 3))
        loss.backward()
        gradients = [p.grad.flatten() for p in network.model.parameters() if p.grad is not None]
        return loss.item(), torch.cat(gradients)

    live, of_live = first_step(())
    stored, of_stored = first_step((middle,))
    assert stored == pytest.approx(live, rel=1e-4)
    assert (of_stored - of_live).norm() <= 1e-4 * of_live.norm()


def test_what_a_head_of_maps_needs_comes_from_the_store_as_it_is_computed(
    images: Samples, store: Store
) -> None:
    torch.manual_seed(0)
    network = network_with_maps(
        architectures.build(Architecture("torchvision", "resnet18")),
        (8, 16, 32),
        lambda channels: nn.Flatten(),
    )
    network.model.to(memory_format=torch.channels_last)
    road = replace(road_of("resnet18"), network=network)
    start = 6
    needed = network.inputs(start)
    assert needed == (5, 6)
    filled = Chain(images, road, AS_THEY_ARE, store, kept=needed)
    list(filled.fill(start))
    # The map of stride 8 alone is not enough to start from there.
    assert not len(Chain(images, road, AS_THEY_ARE, store, kept=needed).absent(0, start))
    assert len(Chain(images, road, AS_THEY_ARE, store, kept=(5, 7)).absent(0, 7)) == len(ALL)
    live = Chain(images, road, AS_THEY_ARE, store, kept=()).inputs(ALL, 0, 7)
    read = Chain(images, road, AS_THEY_ARE, store, kept=needed).inputs(ALL, 0, 7)
    assert [tuple(one.shape[1:]) for one in read] == [(128, 8, 8), (256, 4, 4)]
    for one, expected in zip(read, live, strict=True):
        assert torch.allclose(one, expected, rtol=1e-5, atol=1e-5)


def test_what_is_half_there_is_completed_in_order(
    images: Samples, small: Road, store: Store
) -> None:
    live = Chain(images, small, AS_THEY_ARE, store, kept=()).values(ALL, 0, 4)
    chain = Chain(images, small, AS_THEY_ARE, store, kept=(4,))
    chain.values(np.array([5, 2]), 0, 4)
    chain.flush()
    again = Chain(images, small, AS_THEY_ARE, store, kept=(4,))
    assert again.absent(0, 4).tolist() == [0, 1, 3, 4]
    assert torch.allclose(again.values(ALL, 0, 4), live, rtol=1e-5, atol=1e-5)


def test_every_view_of_an_image_is_another_and_the_same_each_time(
    images: Samples, small: Road, store: Store
) -> None:
    views = Views("natural", seed=7)
    chain = Chain(images, small, views, store, kept=(0, 4))
    first, second = (chain.values(ALL, view, 4) for view in (1, 2))
    assert not torch.allclose(first, second)
    chain.flush()
    live = Chain(images, small, views, store, kept=())
    one = live.values(np.array([3]), 2, 4)
    assert torch.allclose(one, second[3:4], rtol=1e-5, atol=1e-5)
    read = Chain(images, small, views, store, kept=(4,))
    assert not len(read.absent(2, 4))
    assert torch.allclose(read.values(ALL, 2, 4), second, rtol=1e-5, atol=1e-5)


def test_images_go_by_their_content_and_not_by_their_place(
    images: Samples, small: Road, store: Store
) -> None:
    list(Chain(images, small, AS_THEY_ARE, store, kept=(4,)).fill(4))
    turned = images[::-1]
    chain = Chain(turned, small, AS_THEY_ARE, store, kept=(4,))
    assert not len(chain.absent(0, 4))
    ahead = Chain(images, small, AS_THEY_ARE, store, kept=(4,)).values(ALL, 0, 4)
    assert torch.equal(chain.values(ALL, 0, 4), ahead.flip(0))


@pytest.mark.parametrize("change", ["source", "size", "precision", "policy", "seed"])
def test_rows_of_other_making_are_not_taken(
    change: str, images: Samples, small: Road, store: Store
) -> None:
    views = Views("natural", seed=7)
    chain = Chain(images, small, views, store, kept=(4,))
    chain.values(ALL, 1, 4)
    chain.flush()
    road = small
    if change == "source":
        road = replace(small, source_sha256="other")
    elif change == "size":
        road = replace(small, preprocessing=replace(small.preprocessing, size=32))
    elif change == "precision":
        road = replace(small, arithmetic=Arithmetic("bfloat16", "cpu"))
    elif change == "policy":
        views = Views("light", seed=7)
    else:
        views = Views("natural", seed=8)
    assert len(Chain(images, road, views, store, kept=(4,)).absent(1, 4)) == len(ALL)


def test_bfloat16_is_kept_as_it_is_computed(images: Samples, small: Road, store: Store) -> None:
    road = replace(small, arithmetic=Arithmetic("bfloat16", "cpu"))
    list(Chain(images, road, AS_THEY_ARE, store, kept=(4,)).fill(4))
    stored = Chain(images, road, AS_THEY_ARE, store, kept=(4,)).values(ALL, 0, 4)
    live = Chain(images, road, AS_THEY_ARE, store, kept=()).values(ALL, 0, 4)
    assert stored.dtype == live.dtype == torch.bfloat16
    assert torch.equal(stored, live)


def test_a_file_that_changed_since_it_was_checked_is_refused(
    images: Samples, small: Road, store: Store, tmp_path: Path
) -> None:
    sample = images[0]
    other = tmp_path / "other.png"
    Image.new("RGB", (20, 20)).save(other)
    changed = (replace(sample, path=other),)
    chain = Chain(changed, small, AS_THEY_ARE, store, kept=(0,))
    with pytest.raises(DataError, match="changed since it was checked"):
        chain.values(np.array([0]), 0, 0)


def test_a_point_says_what_a_row_of_it_takes(small: Road) -> None:
    points = small.points(small.network.full_depth)
    assert points[0].nbytes == SIZE * SIZE * 3
    assert points[-1].shape == (1024,)
    assert points[-1].nbytes == 4096


def test_pixels_are_decoded_once_and_then_read(
    images: Samples, small: Road, store: Store, tmp_path: Path
) -> None:
    told = list(Chain(images, small, AS_THEY_ARE, store, kept=(0,)).fill(0))
    assert told == [(6, 6)]
    gone = tuple(replace(s, path=tmp_path / "gone.png") for s in images)
    read = Chain(gone, small, AS_THEY_ARE, store, kept=(0,)).values(ALL, 0, 0)
    spec = PixelSpec(SIZE, "bilinear")
    expected = np.stack([pixels_of(sample.path, spec) for sample in images])
    assert np.array_equal(read.numpy(), expected)


def test_what_has_no_room_is_not_computed_for_the_store(
    images: Samples, small: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "BLOCK_BYTES", 1)
    monkeypatch.setattr(pixels, "_TOGETHER", 2)
    row = small.points(4)[4].nbytes
    store = Store(tmp_path / "small", budget_bytes=3 * row)
    chain = Chain(images, small, AS_THEY_ARE, store, kept=(4,))
    assert chain.had_room
    assert list(chain.fill(4)) == [(2, 6)]
    assert not chain.had_room
    assert len(chain.absent(0, 4)) == 4


def test_who_waits_for_another_that_fills_is_told_how_far_it_is(
    images: Samples, small: Road, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chains, "WAIT_SECONDS", 0.01)
    filling = Chain(images, small, AS_THEY_ARE, store, kept=(4,))
    waiting = Chain(images, small, AS_THEY_ARE, store, kept=(4,)).fill(4)
    lock = store.shelf(small.address(4, AS_THEY_ARE)).lock()
    with lock:
        assert next(waiting) == (0, len(ALL))
        filling.values(ALL[:2], 0, 4)
        filling.flush()
        assert next(waiting) == (2, len(ALL))
    assert list(waiting) == [(len(ALL), len(ALL))]
