"""A linear probe: logistic regression on the frozen network's features.

Features of each training image and of its mirror image; the penalty is chosen by five-fold
cross-validation on the training images, and the final fit has all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import timm
import torch
from PIL import Image, ImageOps
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchvision.transforms import v2

from benchmarks.cifar10_twenty_minutes.arm import Outcome, Setting
from benchmarks.cifar10_twenty_minutes.source import MEAN, NETWORK, SIZE, STD, state_dict

TRANSFORM = v2.Compose(
    [
        v2.Resize((SIZE, SIZE), interpolation=v2.InterpolationMode.BICUBIC),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD),
    ]
)
PENALTIES = np.logspace(-4, 0, 9)


def run(setting: Setting) -> Outcome:
    model = timm.create_model(NETWORK)
    model.load_state_dict(state_dict())
    model.reset_classifier(0)
    model.eval().to(memory_format=torch.channels_last)

    files = setting.files("train")
    labels = np.array([path.parent.name for path in files])
    pictures = [Image.open(path).convert("RGB") for path in files]
    both = features(model, pictures + [ImageOps.mirror(picture) for picture in pictures])
    # An image and its mirror image stand on the same side of every fold, which judges plain ones.
    folds = [
        (np.concatenate([train, train + len(files)]), valid)
        for train, valid in StratifiedKFold(5, shuffle=True, random_state=0).split(files, labels)
    ]
    probe = make_pipeline(
        StandardScaler(),
        LogisticRegressionCV(
            Cs=PENALTIES,
            cv=folds,
            scoring="accuracy",
            max_iter=500,
            l1_ratios=(0.0,),
            use_legacy_attributes=False,
        ),
    )
    probe.fit(both, np.concatenate([labels, labels]))
    seconds = setting.used()

    test = setting.files("test")
    found = probe.predict(features(model, [Image.open(path).convert("RGB") for path in test]))
    correct = sum(found == np.array([path.parent.name for path in test]))
    regression = probe[-1]
    best = regression.scores_.mean(axis=0).max()
    chosen = f"C = {float(regression.C_):.2g}, cross-validated accuracy {best:.4f}"
    return Outcome(int(correct), len(test), seconds, chosen)


@torch.inference_mode()
def features(model: torch.nn.Module, pictures: Sequence[Image.Image]) -> np.ndarray:
    rows = []
    for start in range(0, len(pictures), 64):
        batch = torch.stack([TRANSFORM(picture) for picture in pictures[start : start + 64]])
        rows.append(model(batch.to(memory_format=torch.channels_last)).numpy())
    return np.concatenate(rows)
