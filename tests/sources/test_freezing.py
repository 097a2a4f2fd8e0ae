"""What may move when the last stages of a network train, and what may not."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sft_mlflow.sources.network import StagedNetwork, bare_network
from sft_mlflow.sources.source_model import Architecture
from tests.sources.parts import prefix

DEPTHS = (0, 9, 18)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, value: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(value))) + value


class Sharing(nn.Module):
    """Its last block, which is the first to be named, reads weights of the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.third, self.second, self.first = Block(), Block(), Block()
        self.first.conv.weight = self.third.conv.weight
        self.stem = nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, value: Tensor) -> Tensor:
        value = self.third(self.second(self.first(self.stem(value))))
        return self.head(value.mean((2, 3)))


class SharingNorm(Sharing):
    """One module, named once, runs in the first block and in the last."""

    def __init__(self) -> None:
        super().__init__()
        self.third.norm = self.first.norm


def train(network: StagedNetwork, depth: int, *, statistics: bool = True) -> None:
    """Some real steps."""
    torch.manual_seed(0)
    network.freeze(depth, statistics=statistics)
    parameters = [p for p in network.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    frozen, suffix = prefix(network, depth), network.suffix(depth)
    for _ in range(3):
        with torch.no_grad():
            values = frozen(torch.randn(8, 3, 32, 32))
        F.cross_entropy(suffix(values), torch.arange(8) % 2).backward()
        optimizer.step()
        optimizer.zero_grad()


def copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before: dict[str, Tensor], model: nn.Module) -> set[str]:
    after = model.state_dict()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


@pytest.fixture
def shufflenet() -> StagedNetwork:
    torch.manual_seed(0)
    return bare_network(Architecture("torchvision", "shufflenet_v2_x0_5"), 2)


@pytest.mark.parametrize("depth", DEPTHS)
def test_frozen_tensors_stay_to_the_bit_and_all_others_move(
    shufflenet: StagedNetwork, depth: int
) -> None:
    before = copy(shufflenet.model)
    train(shufflenet, depth)
    boundary = shufflenet.full_depth - depth
    trained = set().union(*map(shufflenet.tensors_of, range(boundary, shufflenet.full_depth + 1)))
    assert changed(before, shufflenet.model) == trained & before.keys()


def test_without_statistics_batchnorm_keeps_those_of_the_source(shufflenet: StagedNetwork) -> None:
    before = copy(shufflenet.model)
    train(shufflenet, shufflenet.full_depth, statistics=False)
    buffers = {name for name, _ in shufflenet.model.named_buffers()}
    assert changed(before, shufflenet.model) == before.keys() - buffers


def test_more_depth_means_more_trainable_parameters(shufflenet: StagedNetwork) -> None:
    counts = []
    for depth in range(shufflenet.full_depth + 1):
        shufflenet.freeze(depth)
        counts.append(sum(p.numel() for p in shufflenet.model.parameters() if p.requires_grad))
    assert counts[0] == 1024 * 2 + 2
    assert all(fewer < more for fewer, more in pairwise(counts))
    assert counts[-1] == sum(p.numel() for p in shufflenet.model.parameters())


def test_the_groups_by_stage_hold_each_trainable_parameter_once(shufflenet: StagedNetwork) -> None:
    for depth in DEPTHS:
        shufflenet.freeze(depth)
        groups = shufflenet.parameters_by_stage(depth)
        assert len(groups) == depth + 1
        found = [p for group in groups for p in group]
        assert len(found) == len(set(found))
        assert set(found) == {p for p in shufflenet.model.parameters() if p.requires_grad}
        assert set(groups[-1]) == set(shufflenet.head.parameters())


def test_freezing_deeper_again_freezes_what_had_trained(shufflenet: StagedNetwork) -> None:
    shufflenet.freeze(18, statistics=True)
    shufflenet.freeze(0, statistics=True)
    trainable = {name for name, p in shufflenet.model.named_parameters() if p.requires_grad}
    assert trainable == {"fc.weight", "fc.bias"}
    assert {name for name, m in shufflenet.model.named_modules() if m.training} == {"fc"}


@pytest.mark.parametrize("kind", [Sharing, SharingNorm])
def test_what_a_frozen_stage_shares_with_a_later_one_stays(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    network = StagedNetwork(kind(), "head")
    assert [stage.name for stage in network.stages] == ["stem", "first", "second", "third"]
    before = copy(network.model)
    pixels = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        whole = network.model.eval()(pixels)
        assert torch.allclose(network.suffix(2)(prefix(network, 2)(pixels)), whole, atol=1e-6)
        features = prefix(network, 2)(pixels)
    train(network, 2)
    moved = changed(before, network.model)
    assert not [name for name in moved if name.startswith(("stem.", "first."))]
    assert {"second.conv.weight", "third.conv.bias", "head.weight"} <= moved
    with torch.no_grad():
        assert torch.equal(prefix(network, 2)(pixels), features)


def test_a_tensor_shared_by_stages_that_both_train_is_given_once() -> None:
    network = StagedNetwork(Sharing(), "head")
    network.freeze(4)
    found = [p for group in network.parameters_by_stage(4) for p in group]
    assert len(found) == len(set(found)) == len(list(network.model.parameters()))
