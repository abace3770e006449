"""A network as a graph of operators, in which batch normalisation is part of the convolution before it.

PyTorch's exporter draws the graph: every network that became a bundle went through it. Weights and statistics are
inputs of the graph, told by their canonical names.
"""

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from reidkit.errors import ModelError
from reidkit.models.head import Head
from reidkit.models.model import Network

_aten = torch.ops.aten
LAYERS = frozenset({_aten.conv1d.default, _aten.conv2d.default, _aten.conv2d.padding, _aten.linear.default})
SPLITS = frozenset({_aten.split_with_sizes.default, _aten.split.Tensor, _aten.split.sizes, _aten.chunk.default})
SAME = frozenset({_aten.contiguous.default, _aten.clone.default, _aten.alias.default})
_PREFIX = "network."


@dataclass(frozen=True, slots=True)
class TracedNetwork:
    """A network up to its heads, in evaluation.

    Attributes:
        module: of the graph; it holds no weights.
        names: of the weights and statistics among its inputs, which come in this order.
        x: its last input, the pictures.
        heads: names of the modules that read its outputs, in this order.
        wholes: of each, whether it sees the whole picture.
        fixed: names of weights that folding has made idle.
    """

    module: fx.GraphModule
    names: dict[fx.Node, str]
    x: fx.Node
    heads: tuple[str, ...]
    wholes: tuple[bool, ...]
    fixed: set[str] = field(default_factory=set)

    @property
    def graph(self) -> fx.Graph:
        """Of the module."""
        return self.module.graph

    def layers(self) -> dict[str, fx.Node]:
        """Convolutions and fully connected layers, by name."""
        return {
            self.names[weight].removesuffix(".weight"): node
            for node in self.graph.nodes
            if node.target in LAYERS and (weight := argument(node, 1)) in self.names
        }


def trace(network: Network, size: tuple[int, int]) -> TracedNetwork:
    """Draws the graph of a network; nothing of it is changed.

    Args:
        network: with a classifier.
        size: height and width of a crop.

    Raises:
        ModelError: it has no such graph, as one that changes a value which is read afterwards.
    """
    copied = copy.deepcopy(network).cpu().eval().requires_grad_(False)
    heads: dict[str, None] = {}
    for name, head in copied.named_modules():
        if isinstance(head, Head):
            head.forward = _passing(name, heads)
    wholes: list[bool] = []
    trunk = _Trunk(copied, wholes.append)
    crops = torch.zeros(2, 3, *size)
    batch = torch.export.Dim("batch", min=1, max=65536)
    try:
        exported = torch.export.export(trunk, (crops,), dynamic_shapes=({0: batch},), strict=False)
    except Exception as error:  # anything that a network can do wrong
        raise ModelError("The network cannot be drawn as a graph", got=str(error).partition("\n")[0]) from error
    signature = exported.graph_signature
    if unknown := [*signature.inputs_to_lifted_tensor_constants, *signature.buffers_to_mutate]:
        raise ModelError("The network has constants of its own, or counts", got=", ".join(unknown))
    canonical = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    inputs = exported.graph.find_nodes(op="placeholder")
    names = {
        node: canonical[str(node.target)].removeprefix(_PREFIX) for node in inputs if str(node.target) in canonical
    }
    (x,) = (node for node in inputs if str(node.target) not in canonical)
    _replace_changes(exported.graph)
    return TracedNetwork(exported.graph_module, names, x, tuple(heads), tuple(wholes[: len(heads)]))


class _Trunk(nn.Module):
    """A network whose heads pass what they get."""

    def __init__(self, network: Network, note: Callable[[bool], None]) -> None:
        super().__init__()
        self.network = network
        self.note = note  # the exporter takes back what a module remembers

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs = self.network.training_outputs(x)
        for output in outputs:
            self.note(output.whole)
        return tuple(output.pooled for output in outputs)


def _passing(name: str, called: dict[str, None]) -> Any:
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        called[name] = None
        return x, x

    return forward


def _replace_changes(graph: fx.Graph) -> None:
    """Operators that write over their input give a new value, so that a value is one node."""
    place = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if not node.target._schema.is_mutable:
            continue
        source, name = argument(node, 0), node.target._schema.name.partition("::")[2]
        later = [user for user in source.users if place[user] > place[node]]
        packet = getattr(_aten, name.removesuffix("_"), None)
        if later or packet is None or not name.endswith("_"):
            raise ModelError("The network writes over a value that is read afterwards", got=f"{name} of {source}")
        node.target = getattr(packet, node.target._overloadname)


# -- batch normalisation -----------------------------------------------------------------------------------------------


@torch.no_grad()
def fold_batch_norms(network: Network, traced: TracedNetwork) -> None:
    """Moves batch normalisations into the layers before them: in the network's weights, in float64, and in the graph.

    The network gives the same as before. A normalisation keeps the offset as its bias and else does nothing: weight 1,
    mean 0, variance 1 - epsilon. So the network is an ordinary one at all times, which folds back to the same weights.
    Of IBN-a the half that is a batch normalisation is folded.

    Args:
        network: that was traced; its weights are changed.
        traced: its graph, which is changed.

    Raises:
        ModelError: a normalisation behind a layer has no weights of its own.
    """
    tensors = dict(network.state_dict(keep_vars=True))
    for node in traced.graph.find_nodes(op="call_function", target=_aten.batch_norm.default):
        found = _layer_before(node)
        if found is None or argument(found[0], 1) not in traced.names:
            continue
        layer, start = found
        weight, bias, mean, variance = (traced.names.get(argument(node, i)) for i in range(1, 5))
        if weight is None or bias is None or mean is None or variance is None:
            raise ModelError("A batch normalisation has no weights or statistics, and cannot be folded", got=node.name)
        norm = _Norm(*(tensors[name] for name in (weight, bias, mean, variance)), epsilon=argument(node, 7))
        traced.fixed.add(weight)
        part = slice(start, start + len(norm.bias))
        own = argument(layer, 2)
        norm.fold(
            tensors[traced.names[argument(layer, 1)]][part], None if own is None else tensors[traced.names[own]][part]
        )
        count = layer.meta["val"].shape[1]
        if own is not None and part == slice(0, count):
            traced.fixed.add(traced.names[own])
            own = None
        _set_bias(traced.graph, layer, own, argument(node, 2), (start, count - part.stop))
        node.replace_all_uses_with(argument(node, 0))
        traced.graph.erase_node(node)


@dataclass(frozen=True, slots=True)
class _Norm:
    weight: Tensor
    bias: Tensor
    mean: Tensor
    variance: Tensor
    epsilon: float

    def fold(self, weight: Tensor, bias: Tensor | None) -> None:
        """Into the weights of a layer, all in place."""
        factor = self.weight.double() / (self.variance.double() + self.epsilon).sqrt()
        before = -self.mean.double() if bias is None else bias.double() - self.mean.double()
        self.bias.copy_(self.bias.double() + before * factor)
        weight.copy_(weight.double() * factor.reshape(-1, *(1,) * (weight.ndim - 1)))
        self.weight.fill_(1)
        self.mean.zero_()
        self.variance.fill_(1 - self.epsilon)
        if bias is not None:
            bias.zero_()


def _layer_before(norm: fx.Node) -> tuple[fx.Node, int] | None:
    """The layer whose result, or a part of it, a normalisation alone reads; and the first channel of the part."""
    value, start = argument(norm, 0), 0
    while isinstance(value, fx.Node) and len(value.users) == 1:
        if value.target in LAYERS:
            return value, start
        source = argument(value, 0)
        if value.target in SAME:
            value = source
        elif value.target is operator.getitem and source.target in SPLITS and argument(source, 2, 0) == 1:
            start += sum(part.shape[1] for part in source.meta["val"][: argument(value, 1)])
            value = argument(source, 0)
        else:
            return None
    return None


def _set_bias(graph: fx.Graph, layer: fx.Node, own: Any, bias: Any, beside: tuple[int, int]) -> None:
    """Adds a normalisation's offset to a layer's bias; 0 for the channels beside it."""
    with graph.inserting_before(layer):
        if any(beside):
            bias = graph.call_function(_aten.constant_pad_nd.default, (bias, list(beside)))
        if own is not None:
            bias = graph.call_function(_aten.add.Tensor, (own, bias))
    others = list(layer.args[3:])
    layer.args = (*layer.args[:2], bias, *others)


def argument(node: fx.Node, place: int, default: Any = None) -> Any:
    """An argument of an operator, by place; the default where it is left out."""
    return node.args[place] if len(node.args) > place else default
