"""Networks that only answer: BatchNorm in eval mode is part of the convolution before it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator

import torch.fx
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

# Others may do more with their weights than multiply (weight standardisation, for one), or more
# with their input than scale it.
_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
_NORMS = (nn.BatchNorm2d, BatchNormAct2d)


def folded(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The same function, for a module in eval mode, with fewer passes over memory.

    With statistics fixed, BatchNorm is a scale and a shift of each channel, which the weights of
    the convolution before it can have. Answers differ by rounding, about 1e-6 of their size, and
    come in three quarters of the time (docs/performance.md). The weights are copies where there
    is something to fold: they do not follow those of the module.
    """
    modules = dict(module.named_modules())
    replaced: dict[str, nn.Module] = {}
    for convolution, norm in _pairs(module.graph, modules):
        fused = fuse_conv_bn_eval(modules[convolution], modules[norm])
        replaced[convolution] = fused.to(memory_format=torch.channels_last)
        after = modules[norm]
        timms = isinstance(after, BatchNormAct2d)
        replaced[norm] = nn.Sequential(after.drop, after.act) if timms else nn.Identity()
    if not replaced:
        return module
    result = torch.fx.GraphModule(module, copy.deepcopy(module.graph))
    for path, new in replaced.items():
        parent, _, name = path.rpartition(".")
        setattr(result.get_submodule(parent), name, new)
    return result.eval()


def _pairs(graph: torch.fx.Graph, modules: dict[str, nn.Module]) -> Iterator[tuple[str, str]]:
    """Paths of a convolution and of the BatchNorm that alone reads it."""
    times = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        before = node.args[0] if node.args else None
        if node.op != "call_module" or not isinstance(before, torch.fx.Node):
            continue
        norm, convolution = str(node.target), str(before.target)
        if (
            type(modules[norm]) in _NORMS
            and modules[norm].track_running_stats
            and before.op == "call_module"
            and type(modules[convolution]) in _CONVOLUTIONS
            and len(before.users) == 1
            # A module that stands in several places has one set of weights for all of them.
            and times[norm] == times[convolution] == 1
        ):
            yield convolution, norm
