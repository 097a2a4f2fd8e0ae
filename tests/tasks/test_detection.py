from __future__ import annotations

import contextlib
import io
from dataclasses import astuple

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sft_mlflow.sources import architectures
from sft_mlflow.sources.feature_maps import network_with_maps
from sft_mlflow.sources.uri import resolve
from sft_mlflow.tasks.detection.box_head import Objects
from sft_mlflow.tasks.detection.boxes import Boxes
from sft_mlflow.tasks.detection.fcos import FcosOverPyramid
from sft_mlflow.tasks.detection.metrics import Matched

CLASSES = ("cat", "dog", "never")


def scenes(seed: int, images: int = 12) -> tuple[list[Boxes], list[Boxes]]:
    """Boxes found and true ones: some missed, some moved, some made up, of all of COCO's sizes."""
    random = np.random.default_rng(seed)
    found, truth = [], []
    for _ in range(images):
        count = int(random.integers(0, 5))
        corner = random.uniform(0, 300, (count, 2))
        boxes = np.concatenate([corner, corner + random.uniform(10, 200, (count, 2))], 1)
        labels = random.integers(0, 2, count)
        truth.append(Boxes(boxes, labels, np.ones(count)))
        kept = random.random(count) < 0.8
        moved = boxes[kept] + random.normal(0, 6, (int(kept.sum()), 4))
        extra = int(random.integers(0, 3))
        corner = random.uniform(0, 300, (extra, 2))
        made_up = np.concatenate([corner, corner + random.uniform(10, 90, (extra, 2))], 1)
        both = np.concatenate([moved, made_up])
        names = np.concatenate([labels[kept], random.integers(0, 2, extra)])
        found.append(Boxes(both, names, random.random(len(both))))
    return found, truth


def by_pycocotools(found: list[Boxes], truth: list[Boxes]) -> np.ndarray:
    def rows(images: list[Boxes]) -> list[dict[str, object]]:
        return [
            {
                "image_id": number,
                "category_id": int(label),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
                "score": score,
            }
            for number, one in enumerate(images)
            for (x1, y1, x2, y2), label, score in zip(
                one.boxes, one.labels, one.scores, strict=True
            )
        ]

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": n} for n in range(len(truth))],
            "categories": [{"id": n, "name": name} for n, name in enumerate(CLASSES)],
            "annotations": [{**row, "id": n} for n, row in enumerate(rows(truth), 1)],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(rows(found)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:6]


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_that_of_the_reference(seed: int) -> None:
    found, truth = scenes(seed)
    ours = Matched.of(found, truth, CLASSES).precision()
    expected = by_pycocotools(found, truth)
    # The reference says -1 where there are no objects of a size.
    expected = np.where(expected < 0, np.nan, expected)
    assert astuple(ours)[:6] == pytest.approx(expected.tolist(), abs=1e-9, nan_ok=True)
    assert set(ours.per_class) == {"cat", "dog"}
    assert np.mean(list(ours.per_class.values())) == pytest.approx(ours.map)


def test_finding_everything_is_one_and_nothing_is_zero() -> None:
    _, truth = scenes(0)
    assert Matched.of(truth, truth, CLASSES).precision().map == pytest.approx(1.0)
    nothing = [Boxes(np.empty((0, 4)), np.empty(0, np.int64), np.empty(0)) for _ in truth]
    assert Matched.of(nothing, truth, CLASSES).precision().map_50 == 0.0
    assert Matched.of(nothing, truth, CLASSES).precision().per_class == {"cat": 0.0, "dog": 0.0}


def test_the_head_learns_to_find_a_bright_square_and_says_what_it_is() -> None:
    torch.manual_seed(0)
    source = resolve("embedded://efficientnet_lite0")
    model = architectures.build(source.architecture)
    architectures.load(model, source.state_dict, source.uri)
    network = network_with_maps(model, (8, 16, 32), lambda maps: FcosOverPyramid(maps, 2, 32))
    network.freeze(0)
    canvas = (96, 128)
    images = torch.rand(4, 3, *canvas) * 0.2 - 0.5
    objects = []
    for number, (left, top, side) in enumerate(
        ((8, 8, 40), (60, 30, 56), (80, 4, 36), (16, 40, 48))
    ):
        label = number % 2
        images[number, label * 2, top : top + side, left : left + side] += 1.5
        box = torch.tensor([[left, top, left + side, top + side]], dtype=torch.float32)
        objects.append(Objects(box, torch.tensor([label])))
    # An image of nothing takes part too.
    images = torch.cat([images, torch.rand(1, 3, *canvas) * 0.2 - 0.5])
    objects.append(Objects(torch.empty(0, 4), torch.empty(0, dtype=torch.long)))
    with torch.no_grad():
        given = [network.segment(0, at)(images) for at in network.inputs(network.full_depth)]
    suffix, head = network.suffix(0), network.head
    assert isinstance(head, FcosOverPyramid)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = head.loss(suffix(*given), objects, canvas)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    with torch.no_grad():
        answers = head.detect(suffix(*given), canvas)
    assert len(answers) == len(images)
    found = [Boxes(a.boxes.numpy(), a.labels.numpy(), a.scores.numpy()) for a in answers]
    truth = [Boxes(o.boxes.numpy(), o.labels.numpy(), np.ones(len(o.labels))) for o in objects]
    assert Matched.of(found, truth, CLASSES).precision().map_50 > 0.9
    for answer in answers:
        assert (answer.scores.diff() <= 0).all()
        assert (answer.boxes >= 0).all()
        assert (answer.boxes[:, 2::2] <= canvas[1]).all()
