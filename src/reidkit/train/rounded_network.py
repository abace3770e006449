"""A network that computes as an engine does in eight bits, in all the places where that engine rounds."""

import operator
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, fx, nn

from reidkit.calibration import Range, RoundedLayer
from reidkit.errors import ModelError
from reidkit.models.head import Head, HeadOutputs
from reidkit.models.model import Network, Preprocess
from reidkit.train.fake_quantization import Grid, rounded_weight
from reidkit.train.quantization import Rounding
from reidkit.train.traced_network import SAME, SPLITS, TracedNetwork, argument, fold_batch_norms, trace

_aten = torch.ops.aten
_RELUS = frozenset({
    _aten.relu.default, _aten.relu6.default, _aten.hardtanh.default, _aten.clamp.default, _aten.clamp_min.default,
})  # fmt: skip
_MOVES = SAME | SPLITS | {
    _aten.max_pool2d.default, _aten.view.default, _aten.reshape.default, _aten.flatten.using_ints,
    _aten.unflatten.int, _aten.permute.default, _aten.transpose.int, _aten.squeeze.dim, _aten.unsqueeze.default,
    _aten.slice.Tensor,
}  # fmt: skip

_ADDEND = ":addend"  # what is added to a layer's result, where it is no layer's input or result


class RoundedNetwork(nn.Module):
    """A network that computes as an engine does in eight bits; it keeps a network of floats, which is what is saved.

    Batch normalisations are folded (`fold_batch_norms`), and those of the heads keep their statistics: few steps of
    small batches would only make them worse.

    Args:
        network: with a classifier. It becomes part of this one and is changed, but gives the same as before.
        rounding: where the engine rounds.
        size: height and width of a crop.
        learned: whether the loss decides on the ranges.

    Attributes:
        network: of floats.
        engine: that is imitated.
        floats: names of layers that stay float on purpose.
        given: names of the grids whose first range was given.
        rate: share of the way towards what is seen that ranges take in a step of training.

    Raises:
        ModelError: `rounding` is of another network, or the network cannot be drawn as a graph.
    """

    def __init__(self, network: Network, rounding: Rounding, size: tuple[int, int], *, learned: bool = False) -> None:
        super().__init__()
        traced = trace(network, size)
        fold_batch_norms(network, traced)
        places = rounded_values(traced, rounding)
        self.network = network
        self.engine = rounding.engine
        self.floats = rounding.floats
        self._heads = tuple(zip(traced.heads, traced.wholes, strict=True))
        self._weights = tuple(traced.names.values())
        self._grids = {name: _key(name) for name in dict.fromkeys(name for name, _ in places.values())}
        for key in self._grids.values():
            traced.module.add_submodule(key, Grid(rounding.engine, learned=learned))
        _round(traced, rounding, places)
        self.trunk = fx.GraphModule(traced.module, traced.graph)
        self.rate: Tensor
        self.register_buffer("rate", torch.zeros(()), persistent=False)
        self.given = frozenset(self._grids.keys() & rounding.ranges.keys())
        for name in self.given:
            self.grids[name].set(rounding.ranges[name])
        for name in traced.fixed:
            network.get_parameter(name).requires_grad_(False)

    @property
    def grids(self) -> dict[str, Grid]:
        """By name, as `Rounding` has them."""
        return {name: self.trunk.get_submodule(key) for name, key in self._grids.items()}  # pyright: ignore[reportReturnType]

    def forward(self, x: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n dim"]:
        """Embeddings after the neck."""
        return torch.cat([self._head(name)(map_)[1] for (name, _), map_ in self._maps(x)], dim=1)

    def training_outputs(self, x: Float[Tensor, "n 3 height width"]) -> tuple[HeadOutputs, ...]:
        """What the losses see of each head."""
        return tuple(self._head(name).training_outputs(map_, whole=whole) for (name, whole), map_ in self._maps(x))

    def train(self, mode: bool = True) -> "RoundedNetwork":
        """As of any module; statistics of batch normalisation stay."""
        super().train(mode)
        for module in self.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def _maps(self, x: Tensor) -> Iterator[tuple[tuple[str, bool], Tensor]]:
        tensors = dict(self.network.named_parameters()) | dict(self.network.named_buffers())
        maps = self.trunk(*(tensors[name] for name in self._weights), x, self.rate)
        return zip(self._heads, maps, strict=True)

    def _head(self, name: str) -> Head:
        head = self.network.get_submodule(name)
        assert isinstance(head, Head)
        return head


def float_network(model: Network | RoundedNetwork) -> Network:
    """The network of floats that a network is, or that it computes with."""
    return model.network if isinstance(model, RoundedNetwork) else model


def trained_ranges(model: RoundedNetwork) -> Mapping[str, Range]:
    """The ranges that a network computes in, by name of the grid as `Rounding` has them.

    Of a sum's value that is no layer's it has none; whoever makes the graph measures that one.
    """
    return {name: grid.range() for name, grid in model.grids.items() if not name.endswith(_ADDEND)}


def follow(model: nn.Module, rate: float) -> None:
    """Says how far ranges go towards what a step sees, in place, so that a captured graph sees it."""
    if isinstance(model, RoundedNetwork):
        model.rate.fill_(rate)


def followed(model: nn.Module) -> list[Tensor]:
    """What a step of training changes beside weights, and processes have to agree on: no range that is learned."""
    return [end for grid in _grids_of(model) if grid.factors is None for end in (grid.low, grid.high)]


@torch.no_grad()
def measure_ranges(
    model: RoundedNetwork,
    preprocess: Preprocess,
    batches: Iterable[UInt8[Tensor, "n height width 3"]],
    *,
    but: Collection[str] = (),
) -> None:
    """Sets ranges to the mean of the extremes that the network of floats has in each batch.

    Args:
        model: on its device.
        preprocess: from pixels to what the network sees.
        batches: crops, there, too.
        but: names of grids whose ranges stay.
    """
    training, rate = model.training, model.rate.clone()
    model.eval()
    for name, grid in model.grids.items():
        grid.mode = "passes" if name in but else "measures"
    for number, crops in enumerate(batches, start=1):
        model.rate.fill_(1 / number)
        pixels = preprocess.normalize(crops.permute(0, 3, 1, 2).float())
        model(pixels.contiguous(memory_format=torch.channels_last))
    for grid in model.grids.values():
        grid.mode = "rounds"
    model.rate.copy_(rate)
    model.train(training)


# -- where -------------------------------------------------------------------------------------------------------------

Places: TypeAlias = dict[fx.Node, tuple[str, frozenset[fx.Node] | None]]
"""Values with the name of their grid, and who reads them rounded: None is everybody."""


def rounded_values(traced: TracedNetwork, rounding: Rounding) -> Places:
    """The values of a folded network that an engine rounds.

    Raises:
        ModelError: `rounding` is of another network.
    """
    layers = traced.layers()
    _check_layers(layers, rounding)
    rounded = [(layer, layers[layer.name]) for layer in rounding.layers]
    places = _on_grid(rounded) if rounding.engine == "cpu" else _for_tensorrt(traced.graph, rounded)
    wanted = {name for layer in rounding.layers for name in (layer.input, layer.output) if name is not None}
    if missing := sorted(wanted - {name for name, _ in places.values()}):
        raise _another(f"nobody reads {', '.join(missing[:4])} rounded in the network")
    return places


def _check_layers(layers: Mapping[str, fx.Node], rounding: Rounding) -> None:
    """Refuses layers that one of both sides does not have; what has no positions left is float everywhere."""
    named = [layer.name for layer in rounding.layers]
    if unknown := [name for name in named if name not in layers]:
        raise _another(f"the network has no layer {', '.join(unknown[:4])}")
    maps = [name for name, node in layers.items() if _is_map(node) and _is_map(_input(node))]
    if left := [name for name in maps if name not in named and name not in rounding.floats]:
        raise _another(f"the graph does not round {', '.join(left[:4])}")


def _another(got: str) -> ModelError:
    return ModelError(
        "The graph of the bundle is not that of the network that is to be trained",
        got=got,
        expected="the same layers in both",
        fix="export the bundle again; of a foreign graph, only the network that it was exported from can be trained",
    )


def _on_grid(rounded: Sequence[tuple[RoundedLayer, fx.Node]]) -> Places:
    """Everybody reads inputs and results rounded. What is moved stays on its grid and is not rounded again."""
    places: Places = {}
    for layer, node in rounded:
        if layer.output is not None:
            places[_after_relu(node)] = (layer.output, None)
    for layer, node in rounded:
        owner = source = _input(node)
        while owner not in places and owner.target in _MOVES | {operator.getitem}:
            owner = _input(owner)
        if places.get(owner) != (layer.input, None):
            places[source] = (layer.input, None)
    return places


def _for_tensorrt(graph: fx.Graph, rounded: Sequence[tuple[RoundedLayer, fx.Node]]) -> Places:
    """Layers read their inputs rounded, and a sum the value that comes past the layer whose result it adds."""
    names = {_after_relu(node): layer.output for layer, node in rounded if layer.output is not None}
    names |= {_input(node): layer.input for layer, node in rounded}
    readers: dict[fx.Node, set[fx.Node]] = {}
    for _, node in rounded:
        readers.setdefault(_input(node), set()).add(node)
    place = {node: i for i, node in enumerate(graph.nodes)}
    made = {node: layer.name for layer, node in rounded if len(node.users) == 1}
    for node in graph.find_nodes(op="call_function", target=_aten.add.Tensor):
        if not all(isinstance(value, fx.Node) and _is_map(value) for value in node.args):
            continue
        # Of two layers' results the one whose own input was made first comes past the other.
        by_layers = sorted((value for value in node.args if value in made), key=lambda value: place[_input(value)])
        others = [value for value in node.args if value not in made]
        if by_layers:
            past = others[0] if others else by_layers[0]
            names.setdefault(past, made[by_layers[-1]] + _ADDEND)
            readers.setdefault(past, set()).add(node)
    return {value: (names[value], frozenset(users)) for value, users in readers.items()}


def _after_relu(node: fx.Node) -> fx.Node:
    """What a ReLU makes of a value that nothing else reads, or the value."""
    reader = next(iter(node.users), None)
    if reader is None or len(node.users) > 1 or reader.target not in _RELUS:
        return node
    return reader if reader.target in (_aten.relu.default, _aten.relu6.default) or argument(reader, 1) == 0 else node


def _is_map(value: Any) -> bool:
    """Whether a value has positions: pixels of a map, or the parts of a transformer."""
    shape = value.meta["val"].shape
    return len(shape) > 2 and prod(int(size) for size in shape[2:]) > 1


def _input(node: fx.Node) -> fx.Node:
    return argument(node, 0)


def _round(traced: TracedNetwork, rounding: Rounding, places: Places) -> None:
    """Puts grids behind values, and rounds weights where they are read."""
    graph, found = traced.graph, traced.layers()
    with graph.inserting_after(traced.x):
        rate = graph.placeholder("rate")
    for value, (name, readers) in places.items():
        users = [user for user in value.users if readers is None or user in readers]
        with graph.inserting_after(rate if value is traced.x else value):
            on_grid = graph.call_module(_key(name), (value, rate))
        for user in users:
            user.replace_input_with(value, on_grid)
    for rounded in rounding.layers:
        layer = found[rounded.name]
        with graph.inserting_before(layer):
            layer.update_arg(1, graph.call_function(rounded_weight, (argument(layer, 1), rounding.engine)))
    graph.lint()


def _key(name: str) -> str:
    """The grid as a submodule, whose name may not have dots."""
    return "grids." + name.replace(".", "/")


def _grids_of(model: nn.Module) -> Iterator[Grid]:
    if isinstance(model, RoundedNetwork):
        yield from model.grids.values()
