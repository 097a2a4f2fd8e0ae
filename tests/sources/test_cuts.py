"""The one cut rule against what the papers and the libraries say each family is made of."""

from __future__ import annotations

from functools import cache
from itertools import chain, pairwise

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from sft_mlflow.errors import OptionsError
from sft_mlflow.sources.network import StagedNetwork, bare_network
from sft_mlflow.sources.source_model import Architecture, Library
from tests.sources.parts import prefix


def numbered(form: str, *depths: int, start: int = 0) -> list[str]:
    """Names of the blocks of each group: `layer{}.{}` with depths 3, 4 is layer0.0 … layer1.3."""
    return [form.format(g, b) for g, depth in enumerate(depths, start) for b in range(depth)]


def swin(*depths: int) -> list[str]:
    """Blocks of each group, with a patch merging between two groups."""
    blocks = [[f"features.{2 * g + 1}.{b}" for b in range(n)] for g, n in enumerate(depths)]
    merging = [[f"features.{2 * g + 2}"] for g in range(len(depths) - 1)]
    return [*chain(*chain(*zip(blocks, merging, strict=False))), *blocks[-1]]


STAGES: dict[str, list[str]] = {
    "torchvision://resnet50": ["stem", *numbered("layer{}.{}", 3, 4, 6, 3, start=1)],
    "torchvision://vit_b_16": [
        "stem",
        *(f"encoder.layers.encoder_layer_{i}" for i in range(12)),
    ],
    "torchvision://vgg16": [
        # Configuration D: a convolution and a ReLU each, a pooling after 2, 4, 7, 10 and 13.
        *(f"features.{i}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)),
        "classifier.0",
        "classifier.3",
    ],
    "torchvision://alexnet": [
        *(f"features.{i}" for i in (0, 3, 6, 8, 10)),
        "classifier.1",
        "classifier.4",
    ],
    "torchvision://densenet121": ["stem", *(f"features.denseblock{i}" for i in range(1, 5))],
    "torchvision://swin_t": ["stem", *swin(2, 2, 6, 2)],
    "torchvision://convnext_tiny": [
        "stem",
        *(f"features.{2 * g + 1}.{b}" for g, n in enumerate((3, 3, 9, 3)) for b in range(n)),
    ],
    "torchvision://efficientnet_b0": [
        "stem",
        *numbered("features.{}.{}", 1, 2, 2, 3, 3, 4, 1, start=1),
        "features.8.0",
    ],
    "torchvision://mobilenet_v3_small": [
        "stem",
        *(f"features.{i}" for i in range(1, 12)),
        "features.12.0",
    ],
    "torchvision://regnet_y_400mf": [
        "stem",
        *(
            f"trunk_output.block{g}.block{g}-{b}"
            for g, n in enumerate((1, 3, 6, 6), start=1)
            for b in range(n)
        ),
    ],
    "torchvision://squeezenet1_1": [
        "stem",
        # Eight fire modules, with poolings between them.
        *(f"features.{i}" for i in (3, 4, 6, 7, 9, 10, 11, 12)),
    ],
    "torchvision://shufflenet_v2_x0_5": [
        "stem",
        *numbered("stage{}.{}", 4, 8, 4, start=2),
        "conv5.0",
    ],
    "torchvision://mnasnet0_5": [
        "stem",
        *numbered("layers.{}.{}", 3, 3, 3, 2, 4, 1, start=8),
        "layers.14",
    ],
    "torchvision://googlenet": [
        *("conv1", "conv2", "conv3"),
        *(f"inception{name}" for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")),
    ],
    "torchvision://inception_v3": [
        *(f"Conv2d_{name}" for name in ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")),
        *(f"Mixed_{name}" for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e")),
        *(f"Mixed_{name}" for name in ("7a", "7b", "7c")),
    ],
    "torchvision://maxvit_t": [
        "stem",
        *(
            f"blocks.{g}.layers.{b}.layers.{part}"
            for g, n in enumerate((2, 2, 5, 2))
            for b in range(n)
            for part in ("MBconv", "window_attention", "grid_attention")
        ),
        "classifier.3",
    ],
    "timm://tf_efficientnet_lite0": [
        "stem",
        *numbered("blocks.{}.{}", 1, 2, 2, 3, 3, 4, 1),
        "conv_head",
    ],
    "timm://vit_tiny_patch16_224": ["patch_embed", *(f"blocks.{i}" for i in range(12))],
    "timm://convnext_atto": ["stem", *numbered("stages.{}.blocks.{}", 2, 2, 6, 2)],
    "timm://resnet18": ["stem", *numbered("layer{}.{}", 2, 2, 2, 2, start=1)],
}
# The least that the network takes, in pixels.
SIZES = {
    "torchvision://vit_b_16": 224,
    "torchvision://maxvit_t": 224,
    "timm://vit_tiny_patch16_224": 224,
    "torchvision://inception_v3": 75,
    "torchvision://alexnet": 64,
}
# Slow at their own size, and each cut of them is like its neighbours.
SOME_CUTS = {"torchvision://vit_b_16": 3, "torchvision://maxvit_t": 7}

every_family = pytest.mark.parametrize("name", STAGES)


@cache
def staged(name: str) -> StagedNetwork:
    library, _, architecture = name.partition("://")
    known: dict[str, Library] = {"torchvision": "torchvision", "timm": "timm"}
    torch.manual_seed(0)
    network = bare_network(Architecture(known[library], architecture), 5)
    # Random networks fade out with depth; with statistics of its own data, each layer is alive.
    for module in network.model.modules():
        if isinstance(module, _BatchNorm):
            module.train().momentum = 1.0
    with torch.no_grad():
        network.model(images(name, 4))
    network.model.eval()
    return network


def images(name: str, count: int = 1) -> torch.Tensor:
    size = SIZES.get(name, 32)
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@every_family
def test_stages_are_the_blocks_of_the_family(name: str) -> None:
    assert [stage.name for stage in staged(name).stages] == STAGES[name]
    assert staged(name).full_depth == len(STAGES[name])


@every_family
def test_stages_follow_each_other_without_a_gap(name: str) -> None:
    stages = staged(name).stages
    assert stages[0].first == 0
    assert all(stage.first <= stage.last for stage in stages)
    assert all(low.last + 1 == high.first for low, high in pairwise(stages))


@every_family
def test_every_tensor_is_in_exactly_one_stage_or_the_head(name: str) -> None:
    network = staged(name)
    owned = [network.tensors_of(position) for position in range(network.full_depth + 1)]
    names = list(chain(*owned))
    assert len(names) == len(set(names))
    assert {key for key, _ in network.model.named_parameters()} <= set(names)
    running = {key for key in network.model.state_dict() if "running_" in key}
    assert running <= set(names)
    head = {f"{network.head_path}.weight", f"{network.head_path}.bias"}
    assert head <= owned[-1]


@every_family
@torch.no_grad()
def test_prefix_and_suffix_make_the_whole_network_at_every_cut(name: str) -> None:
    network = staged(name)
    pixels = images(name)
    whole = network.model(pixels)
    assert whole.std() > 0.01
    for depth in range(0, network.full_depth + 1, SOME_CUTS.get(name, 1)):
        values = prefix(network, depth)(pixels)
        before = values.clone()
        parts = network.suffix(depth)(values)
        assert torch.allclose(parts, whole, rtol=1e-5, atol=1e-5 * whole.abs().max().item()), depth
        # They may still wait to be written to the store.
        assert torch.equal(values, before), depth


@every_family
def test_every_head_is_a_linear_layer_that_reads_one_vector(name: str) -> None:
    network = staged(name)
    assert network.head.out_features == 5
    with torch.no_grad():
        features = prefix(network, 0)(images(name))
        assert torch.equal(network.suffix(0)(features), network.model(images(name)))


@pytest.mark.parametrize(
    "name",
    ["torchvision://efficientnet_b0", "torchvision://convnext_tiny", "torchvision://swin_t"],
)
@torch.no_grad()
def test_stochastic_depth_is_random_where_stages_train_and_off_where_they_are_frozen(
    name: str,
) -> None:
    network = staged(name)
    pixels = images(name, 8)
    depth = network.full_depth // 2
    network.freeze(depth)
    frozen, suffix = prefix(network, depth), network.suffix(depth)
    assert torch.equal(frozen(pixels), frozen(pixels))
    torch.manual_seed(0)
    drawn = [suffix(frozen(pixels)) for _ in range(2)]
    assert not torch.equal(*drawn)
    network.model.eval()
    assert torch.equal(suffix(frozen(pixels)), suffix(frozen(pixels)))


@torch.no_grad()
def test_dropout_before_the_head_belongs_to_the_last_stage() -> None:
    name = "torchvision://efficientnet_b0"
    network = staged(name)
    cut = prefix(network, 1)(images(name, 8))
    last = network.suffix(1)
    network.freeze(0)
    assert torch.equal(last(cut), last(cut))
    network.freeze(1)
    assert not torch.equal(last(cut), last(cut))


@pytest.mark.parametrize("depth", [-1, 18])
def test_a_depth_out_of_range_says_how_many_stages_there_are(depth: int) -> None:
    with pytest.raises(OptionsError, match="17 stages"):
        staged("torchvision://resnet50").suffix(depth)


def test_a_network_with_two_heads_is_refused_with_a_reason() -> None:
    with pytest.raises(OptionsError, match="more than one head"):
        bare_network(Architecture("timm", "deit_tiny_distilled_patch16_224"), classes=3)


def test_a_network_whose_forward_pass_looks_at_values_is_refused_with_a_reason() -> None:
    class Choosy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(3, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.fc(images) if images.sum() > 0 else images

    with pytest.raises(OptionsError, match="cannot be divided into stages"):
        StagedNetwork(Choosy(), "fc")
