"""A segmenter of torchvision as the head over its own body."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


class RestOfSegmenter(nn.Module):
    """torchvision's segmenter (DeepLabV3, FCN, LR-ASPP) without its body."""

    def __init__(self, model: nn.Module) -> None:
        """model: its body taken out by `whole_models.take_body`."""
        super().__init__()
        self.model = model

    def forward(self, maps: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, classes, H, W) at the stride of the finest map."""
        # LR-ASPP reads two maps, the others their only one.
        logits: Tensor = self.model.get_submodule("classifier")(maps.get("out", maps))
        return logits
