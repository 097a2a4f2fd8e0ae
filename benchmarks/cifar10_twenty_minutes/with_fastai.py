"""fastai's `fine_tune` with its learning-rate finder; and the same network from random weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from fastai.vision.all import (
    Callback,
    CategoryBlock,
    ChannelsLast,
    DataBlock,
    DataLoaders,
    Image,
    ImageBlock,
    Learner,
    Normalize,
    Resize,
    ResizeMethod,
    TrainTestSplitter,
    accuracy,
    aug_transforms,
    parent_label,
    set_seed,
    vision_learner,
)

from benchmarks.cifar10_twenty_minutes.arm import Outcome, Setting
from benchmarks.cifar10_twenty_minutes.source import (
    MEAN,
    NETWORK,
    SIZE,
    STD,
    bfloat16_is_faster,
    state_dict,
)

BATCH_SIZE = 32
VALID_SHARE = 0.15
# Tried in this order, in equal shares of the time: factor on the rate that the finder suggests;
# `lr_mult`, which divides it for the pretrained layers (fastai's default is 100); and whether
# their BatchNorm keeps the source's statistics. fastai's default is new statistics, which cost a
# linear probe of this network twenty points on so few images.
RUNS = ((1, 10, True), (3, 10, True), (3, 100, True), (1, 100, False))
# With fewer epochs than this for each, there are fewer runs.
EPOCHS_A_RUN = 15
# For the new head alone, before all layers train. fastai's default is one, but one is 27 steps.
FREEZE_EPOCHS = 3


class Bfloat16(Callback):
    """fastai's own `to_bf16` casts on CUDA only; this is the same for the CPU, in training."""

    order = 10

    def before_batch(self) -> None:
        self.cast = torch.autocast("cpu", torch.bfloat16, enabled=self.training)
        self.cast.__enter__()

    def after_pred(self) -> None:
        self.cast.__exit__(None, None, None)
        self.learn.pred = self.pred.float()


class SourceStatistics(Callback):
    """fastai's own `BnFreeze` ends with the frozen epochs; this holds in all of them."""

    def before_train(self) -> None:
        for module in self.model[0].modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()


def fine_tune(setting: Setting) -> Outcome:
    weights = setting.work / "efficientnet_lite0.pth"
    torch.save(state_dict(), weights)
    # timm takes the file where it would otherwise download its own.
    new_learner = learners(setting, pretrained_cfg_overlay={"file": str(weights)})

    learn = new_learner()
    rate = learn.lr_find(show_plot=False).valley
    learn.unfreeze()
    epoch_seconds = timed(partial(learn.fit_one_cycle, 1, slice(rate / 200, rate / 2)))
    affordable = int(setting.left() / epoch_seconds)
    runs = RUNS[: max(1, min(len(RUNS), affordable // EPOCHS_A_RUN))]

    tried = []
    for number, (factor, lr_mult, keeps) in enumerate(runs):
        learn = new_learner()
        if keeps:
            learn.add_cb(SourceStatistics())
        share = setting.left() / (len(runs) - number)
        epochs = epochs_in(share - FREEZE_EPOCHS * epoch_seconds, epoch_seconds)
        what = f"{epochs} epochs, lr {factor * rate:.2g}, lr_mult {lr_mult}"
        what += ", statistics of the source" if keeps else ", new statistics"
        print(f"fine_tune: {what}", flush=True)
        run = partial(learn.fine_tune, epochs, factor * rate, FREEZE_EPOCHS, lr_mult)
        epoch_seconds = timed(run) / (epochs + FREEZE_EPOCHS)
        loss, valid = learn.validate()
        tried.append((valid, -loss, what, learn))
    seconds = setting.used()
    valid, _, what, learn = max(tried, key=lambda run: run[:2])
    correct, images = tested(learn, setting.files("test"))
    chosen = f"{what}, the best of {len(tried)} by validation ({valid:.4f})"
    return Outcome(correct, images, seconds, chosen)


def from_scratch(setting: Setting) -> Outcome:
    new_learner = learners(setting, pretrained=False)

    learn = new_learner()
    rate = learn.lr_find(show_plot=False).valley
    epoch_seconds = timed(partial(learn.fit_one_cycle, 1, rate))

    learn = new_learner()
    epochs = epochs_in(setting.left(), epoch_seconds)
    what = f"{epochs} epochs, lr {rate:.2g}"
    print(f"fit_one_cycle: {what}", flush=True)
    learn.fit_one_cycle(epochs, rate)
    _, valid = learn.validate()
    seconds = setting.used()
    correct, images = tested(learn, setting.files("test"))
    return Outcome(correct, images, seconds, f"{what}; validation {valid:.4f}")


def learners(setting: Setting, **network: object) -> Callable[[], Learner]:
    """A maker of fresh learners on the same images, the same split and the same precision."""
    set_seed(0)
    casts = [ChannelsLast, *([Bfloat16] if bfloat16_is_faster(BATCH_SIZE) else [])]
    loaders = data_loaders(setting.files("train"))

    def new_learner() -> Learner:
        set_seed(0)
        learn = vision_learner(
            loaders,
            NETWORK,
            metrics=accuracy,
            path=setting.work,
            cbs=[cast() for cast in casts],
            **network,
        )
        learn.remove_cb(learn.progress)
        return learn

    return new_learner


def data_loaders(files: list[Path]) -> DataLoaders:
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_y=parent_label,
        splitter=TrainTestSplitter(VALID_SHARE, 0, stratify=[f.parent.name for f in files]),
        item_tfms=Resize(SIZE, ResizeMethod.Squish, resamples=(Image.BICUBIC, Image.NEAREST)),
        # As is usual for CIFAR: mirrored, cut, turned a little; perspective needs sharper pictures.
        batch_tfms=[
            *aug_transforms(size=SIZE, min_scale=0.75, max_warp=0),
            Normalize.from_stats(MEAN, STD, cuda=False),
        ],
    )
    return block.dataloaders(files, bs=BATCH_SIZE, num_workers=0, device=torch.device("cpu"))


def epochs_in(seconds: float, epoch_seconds: float) -> int:
    return max(1, int(seconds / epoch_seconds))


def timed(work: Callable[[], object]) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start


def tested(learn: Learner, files: list[Path]) -> tuple[int, int]:
    """How many of the files the learner gets right, and how many there are."""
    scores, _ = learn.get_preds(dl=learn.dls.test_dl(files))
    vocabulary = learn.dls.vocab
    found = [vocabulary[int(best)] for best in scores.argmax(dim=1)]
    return sum(f == path.parent.name for f, path in zip(found, files, strict=True)), len(files)
