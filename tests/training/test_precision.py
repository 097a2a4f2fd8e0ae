from __future__ import annotations

from typing import get_args

import pytest
import torch

from sft_mlflow.errors import OptionsError
from sft_mlflow.sources.network import bare_network
from sft_mlflow.sources.source_model import Architecture
from sft_mlflow.training.precision import Arithmetic, faster_precision, pick_device
from sft_mlflow.training.recipe import Precision

ABSENT = [
    kind
    for kind, here in {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }.items()
    if not here
]


def test_the_faster_precision_is_measured_and_leaves_the_model_as_it_was() -> None:
    network = bare_network(Architecture("torchvision", "shufflenet_v2_x0_5"), 3)
    network.freeze(network.full_depth)
    before = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
    found = faster_precision(network.model, (32, 32), 4, torch.device("cpu"))
    assert found in get_args(Precision)
    after = network.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in network.model.parameters())


@pytest.mark.parametrize(("precision", "dtype"), [("float32", "float32"), ("bfloat16", "bfloat16")])
def test_products_are_computed_in_the_precision(precision: Precision, dtype: str) -> None:
    with Arithmetic(precision, "cpu").autocast():
        product = torch.nn.Linear(2, 2)(torch.ones(1, 2))
    assert product.dtype == getattr(torch, dtype)


def test_the_cpu_is_always_there_and_auto_takes_what_is() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type not in ABSENT


@pytest.mark.parametrize("name", ABSENT)
def test_a_device_that_is_absent_is_refused_with_those_that_are_there(name: str) -> None:
    with pytest.raises(OptionsError, match=rf"--device {name}: .*\bcpu\b"):
        pick_device(name)
