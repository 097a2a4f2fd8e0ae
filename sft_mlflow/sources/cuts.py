"""Where a network can be cut, found by the one rule that no table is needed for.

A network is traced with `torch.fx` and its nodes are walked in order. Where exactly one value is
still needed later, the network can be cut in two: everything before is a function of the image,
everything after a function of that value. A *stage* runs to the cut that closes a block.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch.fx
import torchvision
from timm.models import get_notrace_modules
from timm.models._features_fx import get_notrace_functions
from torch import nn
from torch.fx.proxy import TraceError

from sft_mlflow.errors import OptionsError

FEWEST_BLOCKS = 3


@dataclass(frozen=True)
class Stage:
    """Nodes `first` to `last` of the traced graph, both included, in its order.

    name: module path of the block that the stage ends with (`layer1.0`), or of the layer that
    it begins with where the network is flat (`features.5`).
    """

    name: str
    first: int
    last: int


@dataclass(frozen=True)
class Traced:
    """A traced network: its nodes in order, and the position of its head.

    nodes: without the output; head: position of the layer that maps features to classes.
    """

    nodes: tuple[torch.fx.Node, ...]
    output: torch.fx.Node
    head: int


class _Tracer(torch.fx.Tracer):
    """Enters only modules that have parts.

    A module without children reads its own `training` when it runs; were it entered, stochastic
    depth and dropout would be baked into the graph in the mode of the trace.
    """

    def __init__(self) -> None:
        super().__init__(
            autowrap_modules=(math, torchvision.ops),  # type: ignore[arg-type]
            autowrap_functions=tuple(get_notrace_functions()),
        )
        self._leaves = tuple(get_notrace_modules())

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            not any(True for _ in m.children())
            or isinstance(m, self._leaves)
            or super().is_leaf_module(m, module_qualified_name)
        )


def trace(model: nn.Module, head: str) -> Traced:
    """The network's nodes as it runs in its present mode; head: module path of the head."""
    *nodes, output = graph(model).nodes
    position = next(i for i, n in enumerate(nodes) if n.op == "call_module" and n.target == head)
    return Traced(tuple(nodes), output, position)


def head_of(model: nn.Module) -> str:
    """Module path of the last linear or convolutional layer before the output."""
    paths = [
        str(node.target)
        for node in graph(model).nodes
        if node.op == "call_module"
        and isinstance(model.get_submodule(str(node.target)), nn.Linear | nn.Conv2d)
    ]
    return paths[-1]


def cuts(traced: Traced) -> tuple[int, ...]:
    """Positions of the nodes after which their value is the only one that is still needed.

    Parameters read directly (`get_attr`) do not count: whoever needs them can read them again.
    """
    position = {node: i for i, node in enumerate(traced.nodes)}
    last_use = [
        max((position.get(user, len(position)) for user in node.users), default=-1)
        for node in traced.nodes
    ]
    found = []
    live: set[int] = set()
    for i, node in enumerate(traced.nodes):
        live = {j for j in live if last_use[j] > i}
        if node.op != "get_attr" and last_use[i] > i:
            live.add(i)
        if live == {i}:
            found.append(i)
    return tuple(found)


def stages(model: nn.Module, traced: Traced) -> tuple[Stage, ...]:
    """The body's stages in order: from the image to the value that the head reads.

    A stage ends where a block ends; what stands before the first block is the stem, layers with
    weights after the last block are a stage of their own. A network without blocks (VGG,
    AlexNet) has a stage for every layer with weights.
    Raises OptionsError where the head is not the only way from the features to the output.
    """
    valid = {cut for cut in cuts(traced) if cut < traced.head}
    if traced.head - 1 not in valid:
        raise OptionsError(
            f"--source: {type(model).__name__} has more than one head, or a head that reads more "
            f"than the features. Choose a network with one."
        )
    paths = [_path(node) for node in traced.nodes]
    ends = _ends(model, traced, paths, valid)
    if not ends:
        raise OptionsError(
            f"--source: {type(model).__name__} cannot be divided into stages. Choose another "
            f"network."
        )
    # The value that the head reads closes the last stage, whatever stands between.
    last = traced.head - 1
    before_last = max(ends)
    rest = [i for i in range(before_last + 1, last + 1) if _has_weights(model, traced, [i])]
    ends[last] = paths[rest[0]] if rest else ends.pop(before_last)
    return _between(ends)


def map_stages(model: nn.Module, traced: Traced, read: Iterable[int]) -> tuple[Stage, ...]:
    """The stages where a head reads the values at these positions, the last of which is the end.

    Each of them ends a stage: behind it, it has to be at hand by itself.
    """
    ends = block_ends(model, traced)
    for position in read:
        if position in ends:
            continue
        later = min((end for end in ends if end > position), default=None)
        if later is not None and not _has_weights(model, traced, range(position + 1, later + 1)):
            # What follows the value without weights of its own goes with the next stage.
            ends[position] = ends.pop(later)
        else:
            begun = max((end for end in ends if end < position), default=-1) + 1
            inside = [i for i in range(begun, position + 1) if _has_weights(model, traced, [i])]
            ends[position] = _path(traced.nodes[inside[0]])
    return _between(ends)


def block_ends(model: nn.Module, traced: Traced) -> dict[int, str]:
    """Positions where a block ends and the network can be cut, with the blocks' module paths."""
    valid = {cut for cut in cuts(traced) if cut < traced.head}
    return _ends(model, traced, [_path(node) for node in traced.nodes], valid)


def _between(ends: Mapping[int, str]) -> tuple[Stage, ...]:
    result = []
    first = 0
    for end in sorted(ends):
        result.append(Stage(ends[end], first, end))
        first = end + 1
    return tuple(result)


def _ends(model: nn.Module, traced: Traced, paths: list[str], valid: set[int]) -> dict[int, str]:
    ends = _block_ends(model, traced, paths, valid)
    return ends if len(ends) >= FEWEST_BLOCKS else _layer_ends(model, traced, paths, valid)


def graph(model: nn.Module) -> torch.fx.Graph:
    """The traced graph, with the image as its only input.

    Raises OptionsError where the network cannot be traced.
    """
    _, *others = inspect.signature(model.forward).parameters.values()
    defaults = {p.name: p.default for p in others if p.default is not p.empty}
    try:
        traced = _Tracer().trace(model, concrete_args=defaults)
    # Whatever a forward pass does with a symbolic value that only a tensor can answer.
    except (TraceError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise OptionsError(
            f"--source: {type(model).__name__} cannot be divided into stages, because its forward "
            f"pass depends on more than the shape of its input ({error}). Choose another network."
        ) from error
    # What remains of an argument fixed to its default is the check that it has that value.
    fixed = set([n for n in traced.nodes if n.op == "placeholder"][1:])
    for node in traced.nodes:
        if fixed.intersection(node.all_input_nodes):
            fixed.add(node)
    for node in reversed([n for n in traced.nodes if n in fixed]):
        traced.erase_node(node)
    return traced


def _block_ends(
    model: nn.Module, traced: Traced, paths: list[str], valid: set[int]
) -> dict[int, str]:
    closed = {path for path, last in _closings(paths).items() if last in valid}
    ends: dict[int, str] = {}
    blocks = _blocks(model, "", closed)
    spans = [[i for i, path in enumerate(paths) if _inside(path, block)] for block in blocks]
    # In the order in which they run, which need not be that in which they were built.
    for span, block in sorted(zip(spans, blocks, strict=True)):
        # One node alone is a layer that the tracer does not enter, such as timm's BatchNormAct2d.
        if len(span) > 1 and span[-1] in valid and _has_weights(model, traced, span):
            stem = range(span[0])
            if not ends and span[0] - 1 in valid and _has_weights(model, traced, stem):
                ends[stem[-1]] = "stem"
            ends[span[-1]] = block
    return ends


def _layer_ends(
    model: nn.Module, traced: Traced, paths: list[str], valid: set[int]
) -> dict[int, str]:
    starts = [i for i in range(traced.head) if _has_weights(model, traced, [i]) and i - 1 in valid]
    return {
        start - 1: paths[previous]
        for previous, start in zip([0, *starts], starts, strict=False)
        if _has_weights(model, traced, range(previous, start))
    }


def _blocks(module: nn.Module, path: str, closed: set[str]) -> list[str]:
    """Module paths of the outermost blocks, in order.

    A block is a module with parts that is neither a plain sequence nor a wrapper around one.
    """
    found = []
    for name, child in module.named_children():
        child_path = f"{path}.{name}" if path else name
        if not any(True for _ in child.children()):
            continue
        if _is_sequence(child) or _wraps_blocks(child, child_path, closed):
            found += _blocks(child, child_path, closed)
        elif not type(child).__module__.startswith("torch.nn."):
            found.append(child_path)
    return found


def _is_sequence(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) or (
        isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    )


def _wraps_blocks(module: nn.Module, path: str, closed: set[str]) -> bool:
    """Whether a sequence in it repeats one class of block, with a cut after each."""
    for name, child in module.named_modules():
        if name and _is_sequence(child):
            parts = [
                (type(part).__qualname__, f"{path}.{name}.{key}")
                for key, part in child.named_children()
                if any(True for _ in part.children()) and not _is_sequence(part)
            ]
            kinds = [kind for kind, part_path in parts if part_path in closed]
            if len(kinds) == len(parts) and len(kinds) > len(set(kinds)):
                return True
    return False


def _closings(paths: list[str]) -> dict[str, int]:
    """For every module path, the position of the last node that runs inside it."""
    last: dict[str, int] = {}
    for i, path in enumerate(paths):
        parts = path.split(".")
        for length in range(1, len(parts) + 1):
            last[".".join(parts[:length])] = i
    return last


def _path(node: torch.fx.Node) -> str:
    """Module path in which the node runs, "" at the root."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack")
    return next(reversed(stack)) if stack else ""


def _inside(path: str, block: str) -> bool:
    return path == block or path.startswith(f"{block}.")


def _has_weights(model: nn.Module, traced: Traced, positions: Iterable[int]) -> bool:
    """Whether a node there applies a weight matrix or kernel, not only a norm's scale."""
    for i in positions:
        node = traced.nodes[i]
        if node.op == "call_module" and any(
            p.ndim > 1 for p in model.get_submodule(str(node.target)).parameters()
        ):
            return True
    return False
