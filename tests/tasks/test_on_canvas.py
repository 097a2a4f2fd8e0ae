"""Heads over feature maps, as wide as suits the body."""

from __future__ import annotations

import pytest

from sft_mlflow.sources.source_model import Architecture
from sft_mlflow.tasks import TASKS
from sft_mlflow.tasks.on_canvas import head_width


@pytest.mark.parametrize(
    ("channels", "width"),
    [
        pytest.param({8: 40, 16: 112, 32: 320}, 64, id="EfficientNet-Lite0, as EfficientDet-D0"),
        pytest.param({8: 512, 16: 1024, 32: 2048}, 256, id="ResNet-50, as FCOS"),
        pytest.param({4: 96, 8: 192, 16: 384, 32: 768}, 96, id="ConvNeXt-T"),
        pytest.param({8: 320, 16: 640, 32: 1280}, 160, id="an eighth"),
        pytest.param({8: 352, 16: 704, 32: 1408}, 192, id="rounded to groups of 32"),
        pytest.param({8: 1024, 16: 2048, 32: 4096}, 256, id="no wider than anyone's"),
    ],
)
def test_a_head_is_as_wide_as_its_body_asks_for(channels: dict[int, int], width: int) -> None:
    assert head_width(channels) == width


@pytest.mark.parametrize("task", ["detection", "segmentation"])
@pytest.mark.parametrize(("name", "width"), [("resnet18", 64), ("resnet50", 256)])
def test_a_network_is_built_with_that_width(task: str, name: str, width: int) -> None:
    network = TASKS[task].building.bare_network(Architecture("torchvision", name), 3)
    shapes = {tuple(p.shape) for n, p in network.head.named_parameters() if "layer_blocks" in n}
    assert (width, width, 3, 3) in shapes
