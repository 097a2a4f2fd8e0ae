from __future__ import annotations

import pytest
import torch
import torch.fx
from timm.layers import StdConv2d
from torch import nn

from sft_mlflow.sources.folding import folded
from sft_mlflow.sources.network import network_from
from sft_mlflow.sources.uri import resolve


def with_statistics(model: nn.Module) -> nn.Module:
    """As pretrained networks are: no BatchNorm whose scale is one and whose shift is zero."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias, std=0.3)
    return model.eval()


def norms(module: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in module.modules())


@pytest.mark.parametrize(
    ("uri", "left"),
    [
        ("embedded://efficientnet_lite0", 0),
        ("torchvision://resnet18/random", 0),
        ("torchvision://regnet_y_400mf/random", 0),
        ("torchvision://mobilenet_v3_small/random", 0),
        # DenseNet's stand before their convolutions, but for one in each layer.
        ("torchvision://densenet121/random", 62),
        ("torchvision://convnext_tiny/random", 0),
    ],
)
@torch.no_grad()
def test_a_folded_network_answers_the_same(uri: str, left: int) -> None:
    network = network_from(resolve(uri), classes=3)
    with_statistics(network.model)
    nn.init.normal_(network.head.weight)
    before = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
    whole = network.suffix(network.full_depth)
    images = torch.randn(2, 3, 64, 64)
    expected, found = whole(images), folded(whole)(images)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert norms(folded(whole)) == left
    after = network.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def traced(*modules: nn.Module) -> torch.fx.GraphModule:
    return torch.fx.symbolic_trace(with_statistics(nn.Sequential(*modules)))


def test_what_is_more_than_a_convolution_is_left_alone() -> None:
    standardised = traced(StdConv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert folded(standardised) is standardised


def test_a_convolution_that_someone_else_reads_is_left_alone() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.convolution(values)
            return found + self.norm(found)

    module = torch.fx.symbolic_trace(with_statistics(Both()))
    assert folded(module) is module


def test_a_layer_that_stands_twice_is_left_alone() -> None:
    convolution, norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
    module = traced(convolution, norm, convolution, nn.BatchNorm2d(3))
    assert norms(folded(module)) == 2
