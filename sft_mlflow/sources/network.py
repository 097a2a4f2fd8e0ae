"""A network in stages: the roads through it, and freezing that leaves no trace."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import torch.fx
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sft_mlflow.errors import OptionsError
from sft_mlflow.sources import architectures, cuts, heads
from sft_mlflow.sources.cuts import Stage, Traced
from sft_mlflow.sources.source_model import Architecture, SourceModel


class StagedNetwork:
    """A model, the stages of its body, and the roads through it.

    `depth` counts the last stages that train, from 0 (the head alone) to `full_depth`. `segment`
    and `suffix` share the model's parameters: training one trains the model.
    """

    def __init__(
        self, model: nn.Module, head_path: str, body: tuple[Traced, tuple[Stage, ...]] | None = None
    ) -> None:
        """body: the traced model and its stages, where they are known; else they are found."""
        self.model = model.eval()
        self.head_path = head_path
        if body is None:
            traced = cuts.trace(model, head_path)
            body = traced, cuts.stages(model, traced)
        self._traced, self.stages = body

    @property
    def full_depth(self) -> int:
        """Number of stages: the depth at which everything trains."""
        return len(self.stages)

    @property
    def head(self) -> nn.Module:
        """What makes the answer of the features: of a classifier, its last layer."""
        return self.model.get_submodule(self.head_path)

    def inputs(self, point: int) -> tuple[int, ...]:
        """The points whose values are needed from that point on, in rising order.

        The last is the point itself; before it come those of feature maps that the head reads.
        """
        return self._inputs[point]

    @cached_property
    def _inputs(self) -> tuple[tuple[int, ...], ...]:
        # Once for all points: every batch asks for those of one.
        at = {stage.last: number for number, stage in enumerate(self.stages, 1)}
        found: list[tuple[int, ...]] = [(0,)]
        for point, stage in enumerate(self.stages, 1):
            read = self._outside(self._traced.nodes[stage.last + 1 :])
            found.append(tuple(sorted({point, *(at[position] for position in read)})))
        return tuple(found)

    def segment(self, begin: int, end: int) -> torch.fx.GraphModule:
        """From the cut after the first `begin` stages to a later one after `end`; 0: the pixels."""
        given = [self.stages[begin - 1].last] if begin else []
        first, last = (given[-1] + 1 if given else 0), self.stages[end - 1].last
        return self._graph_module(given, self._traced.nodes[first : last + 1])

    def suffix(self, depth: int) -> torch.fx.GraphModule:
        """From the values at `inputs` of that cut to the output of the head."""
        self._check(depth)
        point = self.full_depth - depth
        given = [self.stages[p - 1].last for p in self.inputs(point)] if point else []
        return self._graph_module(given, self._traced.nodes[given[-1] + 1 if given else 0 :])

    def freeze(self, depth: int, *, statistics: bool = False) -> None:
        """Let the last `depth` stages and the head train, and nothing else.

        statistics: whether BatchNorm of the stages that train counts anew. A frozen stage stays
        in eval mode too: else its BatchNorm statistics still move.
        """
        self._check(depth)
        first = self.full_depth - depth
        frozen = range(first)
        training = range(first, self.full_depth + 1)
        self.model.eval()
        for path in self._modules_of(training) - self._modules_of(frozen):
            for module in self.model.get_submodule(path).train().modules():
                if isinstance(module, _BatchNorm):
                    module.train(statistics)
        # What a frozen stage shares with a later one, under whatever name, is frozen.
        self.model.requires_grad_(False)
        for parameter in self._parameters_of(training) - self._parameters_of(frozen):
            parameter.requires_grad_()

    def parameters_by_stage(self, depth: int) -> list[list[nn.Parameter]]:
        """Trainable parameters of each of the last `depth` stages in order, then of the head."""
        parameters = dict(self.model.named_parameters())
        groups = []
        for position in range(self.full_depth - depth, self.full_depth + 1):
            names = sorted(self.tensors_of(position) & parameters.keys())
            # Taken out once given: a shared parameter belongs to the first stage that reads it.
            group = [parameters.pop(name) for name in names]
            groups.append([p for p in group if p.requires_grad])
        return groups

    def tensors_of(self, position: int) -> set[str]:
        """Names of the parameters and buffers that a stage reaches; `full_depth` is the head.

        Bare ones, such as ViT's class token, belong to the stage that reads them.
        """
        names: set[str] = set()
        for node in self._nodes_of(position):
            if node.op == "get_attr":
                names.add(str(node.target))
            elif node.op == "call_module":
                module = self.model.get_submodule(str(node.target))
                for name, _ in [*module.named_parameters(), *module.named_buffers()]:
                    names.add(f"{node.target}.{name}")
        return names

    def _modules_of(self, positions: Iterable[int]) -> set[str]:
        nodes = [node for position in positions for node in self._nodes_of(position)]
        return {str(node.target) for node in nodes if node.op == "call_module"}

    def _parameters_of(self, positions: Iterable[int]) -> set[nn.Parameter]:
        named = dict(self.model.named_parameters(remove_duplicate=False))
        names = set().union(*map(self.tensors_of, positions))
        return {named[name] for name in names & named.keys()}

    def _nodes_of(self, position: int) -> Sequence[torch.fx.Node]:
        if position == self.full_depth:
            return self._traced.nodes[self.stages[-1].last + 1 :]
        stage = self.stages[position]
        return self._traced.nodes[stage.first : stage.last + 1]

    def _check(self, depth: int) -> None:
        if not 0 <= depth <= self.full_depth:
            raise OptionsError(
                f"--depths: {depth} is out of range; this source has {self.full_depth} stages "
                f"({self.stages[0].name} to {self.stages[-1].name}), so 0 to {self.full_depth}."
            )

    def _outside(self, nodes: Sequence[torch.fx.Node]) -> list[int]:
        """Positions of earlier values that these nodes read."""
        position = {node: i for i, node in enumerate(self._traced.nodes)}
        read = {n for node in nodes for n in node.all_input_nodes if n.op != "get_attr"}
        return [position[node] for node in read.difference(nodes)]

    def _graph_module(
        self, given: Sequence[int], inside: Sequence[torch.fx.Node]
    ) -> torch.fx.GraphModule:
        """A module of these nodes that shares the model's parameters.

        given: positions of the values that it is called with, in their order.
        """
        nodes = self._traced.nodes
        graph = torch.fx.Graph()
        copies: dict[torch.fx.Node, torch.fx.Node] = {}
        for number, position in enumerate(given):
            copies[nodes[position]] = graph.placeholder(f"value{number}")
        # Parameters read before the cut are read again behind it.
        needed = {n for node in inside for n in node.all_input_nodes if n.op == "get_attr"}
        for node in [*needed.difference(inside), *inside]:
            copies[node] = graph.node_copy(node, copies.__getitem__)
        result = self._traced.output.args[0] if inside[-1] is nodes[-1] else inside[-1]
        graph.output(torch.fx.node.map_arg(result, copies.__getitem__))
        return torch.fx.GraphModule(self.model, graph)


def bare_network(architecture: Architecture, classes: int) -> StagedNetwork:
    """The architecture with a head for that many classes, its weights still to be loaded."""
    model = architectures.build(architecture)
    return StagedNetwork(model, heads.replace_head(model, classes))


def network_from(source: SourceModel, classes: int) -> StagedNetwork:
    """The source's network, pretrained, with a new head for that many classes.

    The head is drawn from torch's global generator.
    """
    model = classifier_from(source)
    return StagedNetwork(model, heads.replace_head(model, classes))


def classifier_from(source: SourceModel) -> nn.Module:
    """The source's network as it was pretrained.

    Raises OptionsError where it was fine-tuned to find boxes or masks, and has no end of its own.
    """
    if source.task != "classification":
        raise OptionsError(
            f"--source {source.uri}: a model for {source.task} does not name the class of an "
            "image. Take a classifier, as the source that it was fine-tuned from."
        )
    model = architectures.build(source.architecture)
    if source.classes:
        _resize_head(model, len(source.classes))
    architectures.load(model, source.state_dict, source.uri)
    return model


def _resize_head(model: nn.Module, classes: int) -> None:
    """Give the head of its own kind another width, for weights that have it."""
    path = cuts.head_of(model)
    head = model.get_submodule(path)
    if isinstance(head, nn.Conv2d):
        if head.out_channels != classes:
            # Of one pixel each, as every head that is one.
            model.set_submodule(path, nn.Conv2d(head.in_channels, classes, 1))
    elif head.out_features != classes:
        heads.replace_head(model, classes)


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels as the weights expect them.

    pixels: (B, H, W, 3) uint8; result: (B, 3, H, W) float32, channels-last in memory.
    """
    scale = pixels.new_tensor(std, dtype=torch.float32) * 255
    shift = pixels.new_tensor(mean, dtype=torch.float32) * 255
    return ((pixels.float() - shift) / scale).permute(0, 3, 1, 2)
