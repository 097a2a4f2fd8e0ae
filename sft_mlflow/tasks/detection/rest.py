"""A detector of torchvision as the head over its own body."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.image_list import ImageList

from sft_mlflow.sources.whole_models import Family
from sft_mlflow.tasks.detection.box_head import LEAST_SCORE, Detections, Objects

Maps = Mapping[str, Tensor]
# As torchvision's detectors want and give them.
Target = dict[str, Tensor]


class RestOfDetector(nn.Module):
    """torchvision's detector without its body: from the body's maps on, its own code runs.

    Whatever the family (Faster R-CNN, RetinaNet, FCOS, SSD), the losses, the anchors and the choice
    among overlapping boxes are torchvision's.
    """

    def __init__(self, model: nn.Module, family: Family) -> None:
        """model: its body taken out by `whole_models.take_body`."""
        super().__init__()
        self.model = model
        self.first_label = family.backgrounds
        if isinstance(model, FCOS):
            # torchvision's own is 0.2, which cuts off the precision of a young head, or all of it.
            model.score_thresh = LEAST_SCORE

    def forward(self, maps: Maps) -> Maps:
        """The maps that boxes are looked for in: those of the pyramid, where there is one."""
        found: Maps = self.model.get_submodule("backbone")(maps)
        return found

    def loss(self, outputs: Maps, objects: Sequence[Objects], canvas: tuple[int, int]) -> Tensor:
        """The losses of the detector, added."""
        device = next(iter(outputs.values())).device
        targets = [one.as_target(device, self.first_label) for one in objects]
        parts = self._over(outputs)(_blank(outputs, canvas), targets)
        return torch.stack(list(parts.values())).sum()

    def detect(self, outputs: Maps, canvas: tuple[int, int]) -> list[Detections]:
        """The boxes of each image after non-maximum suppression, in pixels of the canvas."""
        # One by one: a product over the proposals of all images has another order of summation in
        # other company, and an image would not be answered the same.
        each = zip(*(values.split(1) for values in outputs.values()), strict=True)
        alone = [dict(zip(outputs, maps, strict=True)) for maps in each]
        found = [self._over(one)(_blank(one, canvas))[0] for one in alone]
        return [Detections.of(answer, self.first_label) for answer in found]

    def _over(self, outputs: Maps) -> nn.Module:
        """The detector that finds these maps in any image; it shares the parameters."""
        maps = {name: values.float() for name, values in outputs.items()}
        model = copy.copy(self.model)
        # A shallow copy has the same dict of modules; in its own one they can be replaced.
        model._modules = {
            **self.model._modules,
            "backbone": _Found(maps),
            "transform": _AsTheyAre(),
        }
        return model


class _Found(nn.Module):
    """In the place of a backbone: what one has found already."""

    def __init__(self, maps: Maps) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, images: Tensor) -> Maps:
        return self.maps


class _AsTheyAre(nn.Module):
    """In the place of what resizes and normalises: images come as they should be."""

    def forward(
        self, images: list[Tensor], targets: list[Target] | None
    ) -> tuple[ImageList, list[Target] | None]:
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        return ImageList(torch.stack(images), sizes), targets

    def postprocess(
        self,
        result: list[Target],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[Target]:
        return result


def _blank(outputs: Maps, canvas: tuple[int, int]) -> list[Tensor]:
    """Images of that size, of which nothing but the size is read."""
    some = next(iter(outputs.values()))
    return list(some.new_zeros((len(some), 1, *canvas), dtype=torch.float32))
