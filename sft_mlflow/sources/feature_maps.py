"""A body under a head that reads its feature maps, for boxes and masks.

The head reads maps of several strides. Each of them stands at the end of a stage, so the body is
cut as that of a classifier is; what a suffix is given is the value at its cut and the maps before.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch.fx
from torch import nn
from torch.fx.node import Node, map_arg
from torch.fx.passes.shape_prop import ShapeProp

from sft_mlflow.errors import OptionsError
from sft_mlflow.sources import cuts
from sft_mlflow.sources.cuts import Traced
from sft_mlflow.sources.network import StagedNetwork

# Makes a head for maps of so many channels, by their strides in rising order.
MakeHead = Callable[[Mapping[int, int]], nn.Module]

# Names of the two in a network.
BODY, HEAD = "body", "head"
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
    head = make_head({stride: channels for stride, (_, channels) in chosen.items()})
    read = [traced.nodes[position] for position, _ in chosen.values()]
    return _under(head, classifier, traced.nodes, read)


def network_over(body: nn.Module, head: nn.Module) -> StagedNetwork:
    """A body that answers with a dict of maps, the finest first, under a head that is given it."""
    *nodes, output = cuts.graph(body.eval()).nodes
    return _under(head, body, nodes, output.args[0])


def _under(head: nn.Module, body: nn.Module, nodes: Sequence[Node], read: Any) -> StagedNetwork:
    """The network of what of these nodes of the body is needed for the maps, and the head.

    read: the nodes of the maps, as the head is given them.
    """
    found: list[Node] = []
    map_arg(read, found.append)
    last = max(found, key=nodes.index)
    path = _needed(nodes, [last])
    # What is made of a map for the head alone: SSD scales its first.
    beside = [node for node in _needed(nodes, found) if node not in path]
    given = {n for node in beside for n in node.all_input_nodes} | set(found)
    stages = cuts.map_stages(
        body,
        _traced(path, last),
        [position for position, node in enumerate(path) if node in given],
    )
    # A module of modules, whose paths are those of the body with a word before them.
    model = nn.Module()
    used = _used(body, [*path, *beside], found)
    for node in beside:
        if node.op == "get_attr":
            _fix(used, str(node.target))
    model.add_module(BODY, used)
    model.add_module(HEAD, head)
    graph, copies = _copied([*path, *beside])
    for copy in copies.values():
        if copy.op in ("call_module", "get_attr"):
            copy.target = f"{BODY}.{copy.target}"
    output = graph.output(graph.call_module(HEAD, (map_arg(read, copies.__getitem__),)))
    *kept, _ = graph.nodes
    return StagedNetwork(
        torch.fx.GraphModule(model, graph),
        HEAD,
        (Traced(tuple(kept), output, len(kept) - 1), stages),
    )


def _fix(model: nn.Module, path: str) -> None:
    """Make a parameter one that never trains.

    It would train with the head, but it is not kept with a head: trials start from a head alone.
    """
    owner, _, name = path.rpartition(".")
    module = model.get_submodule(owner)
    value = module.get_parameter(name).detach()
    delattr(module, name)
    module.register_buffer(name, value)


def _needed(nodes: Sequence[Node], results: Collection[Node]) -> list[Node]:
    """Those that these results are made of and themselves, in order."""
    needed = set(results)
    for node in reversed(nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    return [node for node in nodes if node in needed]


def _traced(path: Sequence[Node], last: Node) -> Traced:
    """That path by itself, which ends with that value."""
    graph, copies = _copied(path)
    output = graph.output(copies[last])
    return Traced(tuple(copies.values()), output, len(copies))


def _maps(model: nn.Module, traced: Traced) -> dict[int, tuple[int, int]]:
    """For each stride the position of the last block's end with such a map, and its channels."""
    graph = torch.fx.GraphModule(model, traced.output.graph)
    try:
        # It prints what it then raises.
        with contextlib.redirect_stderr(io.StringIO()):
            ShapeProp(graph).propagate(torch.zeros(1, 3, _SIDE, _SIDE))
    except RuntimeError:
        # A transformer for images of one other size.
        return {}
    found = {}
    for position in sorted(cuts.block_ends(model, traced)):
        shape = traced.nodes[position].meta["tensor_meta"].shape
        # A map has as many rows as columns here; channels last (Swin) or tokens (ViT) do not.
        if len(shape) == 4 and shape[1] == shape[2] != shape[3]:
            return {}
        if len(shape) == 4 and shape[2] == shape[3] > 1 and _SIDE % shape[2] == 0:
            found[_SIDE // shape[2]] = position, shape[1]
    return found


def _used(body: nn.Module, nodes: Sequence[Node], results: Sequence[Node]) -> torch.fx.GraphModule:
    """What of the body these nodes are."""
    graph, copies = _copied(nodes)
    graph.output(tuple(copies[node] for node in results))
    return torch.fx.GraphModule(body, graph)


def _copied(nodes: Sequence[Node]) -> tuple[torch.fx.Graph, dict[Node, Node]]:
    """A graph of copies of these nodes, still without an output, and the copy of each in order."""
    graph = torch.fx.Graph()
    copies: dict[Node, Node] = {}
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    return graph, copies
