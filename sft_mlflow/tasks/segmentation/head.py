"""The head that finds a class for each pixel in feature maps of several strides."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork

# Of the maps that are read.
STRIDES = (4, 8, 16, 32)
# Of the branch that merges its maps, at most: it works at the finest stride.
MOST_WIDTH = 128
_NORM_GROUPS = 16


class SemanticFpn(nn.Module):
    """The semantic branch of Panoptic FPN (Kirillov et al. 2019, arXiv 1901.02446).

    A pyramid carries what coarse maps know into the fine ones; all are brought to the finest
    stride, added, and classified pixel by pixel.
    """

    class_layers = ("answer",)

    def __init__(self, channels: Mapping[int, int], classes: int, width: int) -> None:
        """channels: of the maps that the head will be given, by their strides in rising order.

        width: channels of the pyramid, a multiple of 32.
        """
        super().__init__()
        self.pyramid = FeaturePyramidNetwork(list(channels.values()), width)
        branch = min(width, MOST_WIDTH)
        # Group and not batch norm: statistics of the few images of a batch are no help.
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, branch, 3, padding=1, bias=False),
                nn.GroupNorm(_NORM_GROUPS, branch),
                nn.ReLU(inplace=True),
            )
            for _ in channels
        )
        self.answer = nn.Conv2d(branch, classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits (B, classes, H, W) at the finest of the strides; maps: the finest first."""
        named = OrderedDict((str(number), one) for number, one in enumerate(maps))
        size = maps[0].shape[-2:]
        levels = zip(self.levels, self.pyramid(named).values(), strict=True)
        merged = sum(
            F.interpolate(level(one), size, mode="bilinear", align_corners=False)
            for level, one in levels
        )
        logits: Tensor = self.answer(merged)
        return logits
