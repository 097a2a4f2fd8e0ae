"""The head that finds boxes in feature maps of several strides: FCOS over a pyramid."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS, FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork

from sft_mlflow.tasks.detection.box_head import LEAST_SCORE, Detections, Objects

# Of the maps that are read.
STRIDES = (8, 16, 32)
# Half of the usual, for CPUs.
CONVOLUTIONS = 2


class _Body(nn.Identity):
    """What torchvision's model wants to know of the body, which is elsewhere here."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels


class FcosOverPyramid(nn.Module):
    """FCOS (Tian et al. 2019, arXiv 1904.01355), torchvision's, over feature maps as they come.

    Without anchors: no sizes have to be chosen for the user's objects. One map coarser than the
    last is added for large objects.
    """

    class_layers = ("fcos.head.classification_head.cls_logits",)

    def __init__(self, channels: Mapping[int, int], classes: int, width: int) -> None:
        """channels: of the maps that the head will be given, by their strides in rising order.

        width: channels of the pyramid, a multiple of 32.
        """
        super().__init__()
        strides = (*channels, 2 * max(channels))
        self.pyramid = FeaturePyramidNetwork(list(channels.values()), width)
        self.coarser = nn.Conv2d(width, width, 3, stride=2, padding=1)
        anchors = AnchorGenerator(tuple((s,) for s in strides), ((1.0,),) * len(strides))
        self.fcos = FCOS(
            _Body(width),
            classes,
            anchor_generator=anchors,
            head=FCOSHead(width, 1, classes, num_convs=CONVOLUTIONS),
            score_thresh=LEAST_SCORE,
        )

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """FCOS's outputs over all places, (B, places, …), and `sizes` (levels, 2) of the maps."""
        named = OrderedDict((str(number), one) for number, one in enumerate(maps))
        levels = list(self.pyramid(named).values())
        levels.append(self.coarser(levels[-1]))
        sizes = torch.tensor([level.shape[-2:] for level in levels], device=levels[0].device)
        return {**self.fcos.head(levels), "sizes": sizes}

    def loss(
        self, outputs: Mapping[str, Tensor], objects: Sequence[Objects], canvas: tuple[int, int]
    ) -> Tensor:
        """Focal loss of the classes, GIoU of the boxes and cross entropy of the centres, added."""
        found = {name: values.float() for name, values in outputs.items() if name != "sizes"}
        targets = [one.as_target(found["cls_logits"].device) for one in objects]
        places, counts = self._places(outputs["sizes"], len(objects), canvas, found["cls_logits"])
        parts = self.fcos.compute_loss(targets, found, places, counts)
        return torch.stack(list(parts.values())).sum()

    def detect(self, outputs: Mapping[str, Tensor], canvas: tuple[int, int]) -> list[Detections]:
        """The boxes of each image after non-maximum suppression, in pixels of the canvas."""
        found = {name: values.float() for name, values in outputs.items() if name != "sizes"}
        images = len(found["cls_logits"])
        places, counts = self._places(outputs["sizes"], images, canvas, found["cls_logits"])
        by_level = {name: list(values.split(counts, dim=1)) for name, values in found.items()}
        split = [list(of_image.split(counts)) for of_image in places]
        answers = self.fcos.postprocess_detections(by_level, split, [canvas] * images)
        return [Detections.of(answer) for answer in answers]

    def _places(
        self, sizes: Tensor, images: int, canvas: tuple[int, int], like: Tensor
    ) -> tuple[list[Tensor], list[int]]:
        """Where the outputs stand in each image, as squares (places, 4), and how many a level."""
        shapes = [(int(height), int(width)) for height, width in sizes]
        maps = [like.new_empty(images, 1, *shape) for shape in shapes]
        batch = ImageList(like.new_empty(images, 1, *canvas), [canvas] * images)
        return self.fcos.anchor_generator(batch, maps), [h * w for h, w in shapes]
