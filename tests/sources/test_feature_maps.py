from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from sft_mlflow.errors import OptionsError
from sft_mlflow.sources import architectures
from sft_mlflow.sources.feature_maps import network_with_maps
from sft_mlflow.sources.network import StagedNetwork
from sft_mlflow.sources.source_model import Architecture
from sft_mlflow.sources.uri import resolve

STRIDES = (4, 8, 16, 32)


class Projections(nn.Module):
    """The smallest head that reads every map."""

    def __init__(self, channels: Mapping[int, int]) -> None:
        super().__init__()
        self.strides = tuple(channels)
        self.layers = nn.ModuleList(nn.Conv2d(count, 2, 1) for count in channels.values())

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return [layer(one) for layer, one in zip(self.layers, maps, strict=True)]


def with_maps(uri: str, strides: tuple[int, ...] = STRIDES) -> StagedNetwork:
    source = resolve(uri)
    torch.manual_seed(0)
    return network_with_maps(architectures.build(source.architecture), strides, Projections)


@pytest.mark.parametrize(
    ("uri", "strides", "stages"),
    [
        ("embedded://efficientnet_lite0", STRIDES, 17),
        ("torchvision://resnet18/random", STRIDES, 9),
        ("torchvision://densenet121/random", STRIDES, 5),
        ("torchvision://mobilenet_v3_large/random", STRIDES, 16),
        ("torchvision://regnet_y_400mf/random", STRIDES, 17),
        ("torchvision://convnext_tiny/random", STRIDES, 19),
        # Its last map, of stride 32, comes of pooling and has no layer of its own behind it.
        ("torchvision://vgg11_bn/random", (4, 8, 16), 7),
    ],
)
@torch.no_grad()
def test_every_suffix_makes_of_its_inputs_what_the_whole_network_makes(
    uri: str, strides: tuple[int, ...], stages: int
) -> None:
    network = with_maps(uri)
    assert network.full_depth == stages
    assert network.head.strides == strides
    # Neither square nor of the size that the source was trained at.
    images = torch.randn(2, 3, 64, 96)
    whole = network.model(images)
    assert [tuple(one.shape[2:]) for one in whole] == [(64 // s, 96 // s) for s in strides]
    for point in range(network.full_depth + 1):
        inputs = network.inputs(point)
        assert inputs[-1] == point
        given = [network.segment(0, at)(images) if at else images for at in inputs]
        before = [values.clone() for values in given]
        found = network.suffix(network.full_depth - point)(*given)
        # They may still wait to be written to the store.
        assert all(map(torch.equal, given, before))
        for one, expected in zip(found, whole, strict=True):
            assert torch.allclose(one, expected, rtol=1e-4, atol=1e-5)


def test_maps_that_the_head_reads_are_inputs_of_every_later_suffix() -> None:
    network = with_maps("torchvision://resnet18/random", (8, 16, 32))
    # Two blocks of each stride, behind the stem.
    assert [network.inputs(point) for point in (0, 4, 5, 6, 9)] == [
        (0,),
        (4,),
        (5,),
        (5, 6),
        (5, 7, 9),
    ]


def test_frozen_stages_below_a_head_of_maps_stay_as_they_are() -> None:
    network = with_maps("torchvision://resnet18/random")
    network.freeze(2)
    trainable = {name for name, p in network.model.named_parameters() if p.requires_grad}
    assert all(name.startswith(("body.layer4", "head.")) for name in trainable)
    assert any(name.startswith("body.layer4.0") for name in trainable)
    groups = network.parameters_by_stage(2)
    assert len(groups) == 3
    assert set(groups[-1]) == set(network.head.parameters())


def test_what_a_classifier_has_behind_its_last_map_is_not_kept() -> None:
    names = set(with_maps("embedded://efficientnet_lite0").model.state_dict())
    assert not {name for name in names if "classifier" in name or "conv_head" in name}
    assert "body.blocks.6.0.conv_pw.weight" in names


@pytest.mark.parametrize("name", ["vit_b_32", "swin_t"])
def test_a_network_without_maps_is_refused_with_what_to_choose(name: str) -> None:
    with pytest.raises(OptionsError, match="Choose a convolutional network"):
        with_maps(f"torchvision://{name}/random")


def test_a_transformer_for_images_of_one_size_is_refused_and_prints_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = architectures.build(Architecture("timm", "vit_tiny_patch16_384"))
    with pytest.raises(OptionsError, match="Choose a convolutional network"):
        network_with_maps(model, STRIDES, Projections)
    assert capfd.readouterr().err == ""
