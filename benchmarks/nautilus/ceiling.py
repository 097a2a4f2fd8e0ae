"""The work that cannot be avoided, alone and from memory: no files, no store, no tracking.

Every image is decoded once and goes once through the frozen blocks; then every trial trains what it
trains, in bfloat16 and channels-last, and validates in float32 as the product does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50

from benchmarks.nautilus.loop import Files, freeze_up_to
from benchmarks.nautilus.workload import BATCH_SIZES, BLOCKS, EPOCHS, RATES, SIZE, Workload
from sft_mlflow import runtime

BATCH = 32


def run(workload: Workload, folder: Path) -> dict[str, object]:
    runtime.tune()
    torch.set_num_threads(workload.threads)
    model = resnet50(num_classes=len(workload.classes)).to(memory_format=torch.channels_last)
    begun = time.perf_counter()
    train, valid = (_cuts(model, workload, side) for side in ("train", "valid"))
    once = time.perf_counter() - begun
    begun = time.perf_counter()
    for block in BLOCKS:
        for batch_size in BATCH_SIZES:
            _train(model, block, batch_size, train, valid)
    seconds = time.perf_counter() - begun
    counts = {side: len(workload.files(side)) for side in ("train", "valid")}
    return {
        "seconds": once + seconds * len(RATES),
        "measured": "one learning rate of three",
        "flops_ratio": flops_ratio(model, counts["train"], counts["valid"]),
    }


def parts(model: nn.Module, begin: int) -> list[nn.Module]:
    """The network as a list: stem, the sixteen blocks, the head; from one of them on."""
    stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool)
    blocks = [b for n in ("layer1", "layer2", "layer3", "layer4") for b in model.get_submodule(n)]
    head = nn.Sequential(model.avgpool, nn.Flatten(), model.fc)
    return [stem, *blocks, head][begin:]


def place(block: str) -> int:
    """Where in the list a block stands."""
    lengths = {"layer1": 3, "layer2": 4, "layer3": 6, "layer4": 3}
    name, number = block.split(".")
    before = sum(n for layer, n in lengths.items() if layer < name)
    return 1 + before + int(number)


@torch.no_grad()
def _cuts(model: nn.Module, workload: Workload, side: str) -> tuple[dict[str, Tensor], Tensor]:
    """What each block is given, for all images of a side, and their labels."""
    precise = side == "valid"
    model.eval()
    images, labels = zip(*Files(workload.files(side)), strict=True)
    # BatchNorm folded into the convolutions, as everywhere where nothing trains.
    frozen = [fuse(part) for part in parts(model, 0)[: place(BLOCKS[-1])]]
    found: dict[str, list[Tensor]] = {block: [] for block in BLOCKS}
    for some in torch.stack(images).split(BATCH):
        values = some.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not precise):
            for number, part in enumerate(frozen):
                values = part(values)
                for block in BLOCKS:
                    if place(block) == number + 1:
                        found[block].append(values)
    return {block: torch.cat(values) for block, values in found.items()}, torch.tensor(labels)


def _train(
    model: nn.Module,
    block: str,
    batch_size: int,
    train: tuple[dict[str, Tensor], Tensor],
    valid: tuple[dict[str, Tensor], Tensor],
) -> None:
    trained = freeze_up_to(model, block)
    suffix = nn.Sequential(*parts(model, place(block)))
    optimizer = torch.optim.AdamW([p for m in trained for p in m.parameters()], lr=RATES[0])
    values, labels = train[0][block], train[1]
    for _ in range(EPOCHS):
        suffix.train()
        for rows in torch.randperm(len(labels)).split(batch_size):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                outputs = suffix(values[rows])
            nn.functional.cross_entropy(outputs.float(), labels[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
        answering = fuse(suffix.eval())
        with torch.no_grad():
            for some in valid[0][block].split(BATCH):
                answering(some)


def flops_ratio(model: nn.Module, train: int, valid: int) -> float:
    """FLOPs of all trials without reuse over those with it, forward and backward."""

    def counted(work: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops()

    model.eval().float()
    image = torch.zeros(1, 3, SIZE, SIZE)
    plain = reused = 0
    with torch.no_grad():
        longest = nn.Sequential(*parts(model, 0)[: place(BLOCKS[-1])])
        once = counted(lambda: longest(image))
    per_block = len(BATCH_SIZES) * len(RATES)
    for block in BLOCKS:
        freeze_up_to(model, block)
        prefix = nn.Sequential(*parts(model, 0)[: place(block)])
        suffix = nn.Sequential(*parts(model, place(block)))
        with torch.no_grad():
            values = prefix(image)
            frozen = counted(lambda: prefix(image))  # noqa: B023
            forward = counted(lambda: suffix(values))  # noqa: B023
        step = counted(lambda: suffix(values).sum().backward())  # noqa: B023
        trained = EPOCHS * (train * step + valid * forward)
        plain += per_block * (trained + EPOCHS * (train + valid) * frozen)
        reused += per_block * trained
    return plain / (reused + (train + valid) * once)
