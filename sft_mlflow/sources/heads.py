"""A new head in place of the pretrained one."""

from __future__ import annotations

from torch import nn

from sft_mlflow.sources import cuts


def replace_head(model: nn.Module, classes: int) -> str:
    """Put a new linear layer for that many classes at the end; its module path comes back.

    A head that is a convolution, over a map (SqueezeNet) or what was pooled from one (BiT),
    becomes pooling and a linear layer, so that the head of every network is a linear function of
    one feature vector.
    """
    path = cuts.head_of(model)
    parent_path, _, name = path.rpartition(".")
    parent = model.get_submodule(parent_path)
    old = getattr(parent, name)
    if isinstance(old, nn.Linear):
        setattr(parent, name, nn.Linear(old.in_features, classes))
        return path
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(old.in_channels, classes)]
    if not isinstance(parent, nn.Sequential):
        setattr(parent, name, nn.Sequential(*pooled))
        return f"{path}.{len(pooled) - 1}"
    before = list(parent.children())[: [key for key, _ in parent.named_children()].index(name)]
    sequence = nn.Sequential(*before, *pooled)
    owner, _, attribute = parent_path.rpartition(".")
    setattr(model.get_submodule(owner), attribute, sequence)
    return f"{parent_path}.{len(sequence) - 1}"
