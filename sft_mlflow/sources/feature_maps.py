"""The body of a classifier under a head that reads its feature maps, for boxes and masks.

The head reads maps of several strides. Each of them stands at the end of a stage, so the body is
cut as that of a classifier is; what a suffix is given is the value at its cut and the maps before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch.fx
from torch import Tensor, nn
from torch.fx.passes.shape_prop import ShapeProp

from sft_mlflow.errors import OptionsError
from sft_mlflow.sources import architectures, cuts
from sft_mlflow.sources.cuts import Traced
from sft_mlflow.sources.network import StagedNetwork

# Makes a head for maps of so many channels, by their strides in rising order.
MakeHead = Callable[[Mapping[int, int]], nn.Module]

_BODY, _HEAD = "body", "head"
# Of the picture that is sent through to see which maps there are; strides are its divisors.
_SIDE = 224


def network_with_maps(
    classifier: nn.Module, strides: Sequence[int], make_head: MakeHead
) -> StagedNetwork:
    """The classifier's body up to the last map of these strides, and a new head that reads them.

    strides: how many pixels of the image a pixel of the map stands for, those that the body lacks
    are left out. The head is called with a list of the maps, the finest first.
    Raises OptionsError where the network has no such maps, as transformers of one resolution.
    """
    classifier.eval()
    traced = cuts.trace(classifier, cuts.head_of(classifier))
    maps = _maps(classifier, traced)
    chosen = {stride: maps[stride] for stride in sorted(strides) if stride in maps}
    if not chosen:
        raise OptionsError(
            f"--source: {type(classifier).__name__} has no feature maps of stride "
            f"{' or '.join(map(str, strides))}, which boxes and masks are found in. Choose a "
            "convolutional network."
        )
    taps = [position for position, _ in chosen.values()]
    head = make_head({stride: channels for stride, (_, channels) in chosen.items()})
    # A module of modules, whose paths are those of the classifier with a word before them.
    model = nn.Module()
    model.add_module(_BODY, _used(classifier, traced, taps))
    model.add_module(_HEAD, head)
    graph = torch.fx.Graph()
    copies: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in traced.nodes[: taps[-1] + 1]:
        copy = graph.node_copy(node, copies.__getitem__)
        if node.op in ("call_module", "get_attr"):
            copy.target = f"{_BODY}.{node.target}"
        copies[node] = copy
    answer = graph.call_module(_HEAD, ([copies[traced.nodes[position]] for position in taps],))
    output = graph.output(answer)
    *nodes, _ = graph.nodes
    return StagedNetwork(
        torch.fx.GraphModule(model, graph),
        _HEAD,
        (
            Traced(tuple(nodes), output, len(nodes) - 1),
            cuts.map_stages(classifier, traced, taps[-1]),
        ),
    )


def load_body(network: StagedNetwork, state_dict: Mapping[str, Tensor], origin: str) -> None:
    """Give the body the weights that it has in another network of this kind.

    Raises DataError where they do not fit.
    """
    before = f"{_BODY}."
    body = {k.removeprefix(before): v for k, v in state_dict.items() if k.startswith(before)}
    architectures.load(network.model.get_submodule(_BODY), body, origin)


def _maps(model: nn.Module, traced: Traced) -> dict[int, tuple[int, int]]:
    """For each stride the position of the last block's end with such a map, and its channels."""
    graph = torch.fx.GraphModule(model, traced.output.graph)
    ShapeProp(graph).propagate(torch.zeros(1, 3, _SIDE, _SIDE))
    found = {}
    for position in sorted(cuts.block_ends(model, traced)):
        shape = traced.nodes[position].meta["tensor_meta"].shape
        # A map has as many rows as columns here; channels last (Swin) or tokens (ViT) do not.
        if len(shape) == 4 and shape[1] == shape[2] != shape[3]:
            return {}
        if len(shape) == 4 and shape[2] == shape[3] > 1 and _SIDE % shape[2] == 0:
            found[_SIDE // shape[2]] = position, shape[1]
    return found


def _used(model: nn.Module, traced: Traced, taps: Sequence[int]) -> torch.fx.GraphModule:
    """What of the model is needed up to the last tap."""
    graph = torch.fx.Graph()
    copies: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in traced.nodes[: taps[-1] + 1]:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[traced.nodes[position]] for position in taps))
    return torch.fx.GraphModule(model, graph)
