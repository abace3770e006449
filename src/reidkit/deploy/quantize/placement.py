"""Where a graph is rounded to eight bits: which layers, and which values on their way.

No one placement serves all engines. TensorRT wants the inputs of convolutions and matrix products rounded, and of a sum
the input that comes past them; whatever stands between is its own affair, and a pair too many breaks its fusions. ONNX
Runtime computes in integers only what stands between a dequantisation and a quantisation, so there the results are
rounded, too. Both placements are made from one list of layers, and read their ranges from one table.

Everything stays float from where a map's positions are gone, and everything that is no layer is float to start with:
statistics of instance normalisations, gates, pooling, GeM's power, neck and embedding layer.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import prod

import onnx
from onnx import TensorProto

from reidkit.calibration import EngineKind, RoundedLayer
from reidkit.deploy.graph_links import Links, ValueType, attribute, is_point, positionless, value_table
from reidkit.errors import ModelError, unknown_name
from reidkit.onnx_file import is_standard

PLACEMENT = 1
"""One more whenever the same graph gets other layers or values: a table that was made before no longer fits."""

QUANTIZED_OPERATORS = frozenset({
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
    "MatMulInteger"
})  # fmt: skip
_MOVES = frozenset({"MaxPool", "Split", "Slice", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
"""Give values that they got: what is on a grid stays on it."""

_SOME_BATCH = 3  # to work out sizes with; any but 1 would do


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution or matrix product with constant weights that is computed in eight bits.

    Attributes:
        name: of its weights, as far as they have one: "backbone.layer1.0.conv2". Layers that share weights share it.
        operator: "Conv" or "MatMul".
        weight: the constant.
        axis: of the constant, that counts the layer's outputs.
        input: the value that it reads.
        result: the value that it makes, or that a ReLU makes of it where nothing else reads it.
        multiply_adds: for one crop; 0 where a size is not known.
    """

    name: str
    operator: str
    weight: str
    axis: int
    input: str
    result: str
    multiply_adds: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Which values of a graph are rounded.

    Attributes:
        kind: of engine.
        layers: in the order of the graph.
        owners: every rounded value with the one whose range it takes: mostly itself, but what is moved keeps its grid.
        readers: of a rounded value, the names of the only nodes that read it rounded; values that are not listed are
            read so by all.
    """

    kind: EngineKind
    layers: tuple[Layer, ...]
    owners: Mapping[str, str]
    readers: Mapping[str, frozenset[str]]


def quantizable_layers(model: onnx.ModelProto) -> tuple[Layer, ...]:
    """The layers of a graph that can be computed in eight bits, in its order.

    Args:
        model: a cleaned graph (`graph_cleanup.cleaned`).

    Raises:
        ModelError: the graph is quantised already, or has no such layer.
    """
    refuse_quantized(model)
    links, table = Links(model.graph), value_table(model, batch=_SOME_BATCH)
    tail = positionless(model.graph, links, table)
    layers = [layer for node in model.graph.node if (layer := _layer(node, links, table, tail)) is not None]
    if not layers:
        raise ModelError(
            "The graph has nothing to quantise",
            got="no convolution or matrix product with constant float32 weights before the pooling",
            expected="a convolutional network, or one of matrix products over positions",
        )
    return _told_apart(layers)


def refuse_quantized(model: onnx.ModelProto) -> None:
    """Refuses a graph that is quantised already.

    Raises:
        ModelError: it is, names the operators.
    """
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    found = sorted({node.op_type for node in nodes if node.op_type in QUANTIZED_OPERATORS})
    if found:
        raise ModelError(
            "The graph is quantised already",
            got=", ".join(found),
            expected="a float32 graph",
            fix="quantise the float32 network that it was made from",
        )


def place(model: onnx.ModelProto, kind: EngineKind, *, floats: Collection[str] = ()) -> Placement:
    """Decides which values of a graph are rounded for a kind of engine.

    Args:
        model: a cleaned graph.
        kind: "cpu" for ONNX Runtime and OpenVINO, "tensorrt" for every TensorRT.
        floats: names of layers that stay float.

    Raises:
        ConfigError: no layer of such a name.
        ModelError: as `quantizable_layers`; or no layer is left.
    """
    layers = quantizable_layers(model)
    names = dict.fromkeys(layer.name for layer in layers)
    if unknown := sorted(set(floats) - names.keys()):
        raise unknown_name("layer to keep in float:", unknown[0], names)
    layers = tuple(layer for layer in layers if layer.name not in floats)
    if not layers:
        raise ModelError("Nothing is left to quantise", got="every layer is to stay float", fix="keep fewer in float")
    links, table = Links(model.graph), value_table(model, batch=_SOME_BATCH)
    if kind == "tensorrt":
        return _for_tensorrt(model.graph, layers, links, table)
    return Placement(kind, layers, _on_grid(model.graph, layers, links, table), {})


def rounded_layers(model: onnx.ModelProto, placement: Placement) -> tuple[RoundedLayer, ...]:
    """A placement in the words of the network: layers by name, and the grids that they share.

    A value's name is the exporter's affair, a layer's is the network's: a grid is called after the first layer beside
    it, "backbone.layer1.0.conv2:input" or ":output". So training, which has another graph, rounds in the same places.
    """
    names = grid_names(model)
    return tuple(
        RoundedLayer(
            layer.name,
            names[placement.owners[layer.input]],
            names[placement.owners[layer.result]] if layer.result in placement.owners else None,
        )
        for layer in placement.layers
    )


def grid_names(model: onnx.ModelProto) -> dict[str, str]:
    """By value of the graph, what its grid is called in the words of the network."""
    names: dict[str, str] = {}
    for layer in quantizable_layers(model):
        names.setdefault(layer.input, f"{layer.name}:input")
        names.setdefault(layer.result, f"{layer.name}:output")
    return names


def _layer(node: onnx.NodeProto, links: Links, table: Mapping[str, ValueType], tail: Collection[str]) -> Layer | None:
    axes = {"Conv": 0, "MatMul": 1}  # no Gemm: it has no axis for positions
    if not is_standard(node, node.op_type) or node.op_type not in axes:
        return None
    source, weight, result = node.input[0], node.input[1], node.output[0]
    known = [table.get(name) for name in (source, weight, result)]
    if any(value is None or value.element != TensorProto.FLOAT or value.shape is None for value in known):
        return None
    given, constant, made = (value for value in known if value is not None)
    if weight not in links.constants or source in links.constants or result in tail or is_point(given):
        return None
    if node.op_type == "MatMul" and len(constant.shape or ()) != 2:
        return None
    sizes, outputs = constant.shape or (), (made.shape or ())[1:]
    positions = prod(size or 0 for size in (outputs[1:] if node.op_type == "Conv" else outputs[:-1]))
    return Layer(
        name=_bare(weight) or node.name or result,
        operator=node.op_type,
        weight=weight,
        axis=axes[node.op_type],
        input=source,
        result=_after_relu(result, links),
        multiply_adds=prod(size or 0 for size in sizes) * positions,
    )


def _told_apart(layers: Collection[Layer]) -> tuple[Layer, ...]:
    """The layers with names that are of one weight each: "a" and "a.weight" would both be called "a"."""
    if len({layer.name for layer in layers}) == len({layer.weight for layer in layers}):
        return tuple(layers)
    return tuple(replace(layer, name=layer.weight) for layer in layers)


def _bare(weight: str) -> str:
    """The name of a layer, from that of its weight: without what the exporter and the cleaning put around it."""
    return weight.removesuffix("_folded").removesuffix(".weight").removeprefix("model.")


def _after_relu(value: str, links: Links) -> str:
    """What a ReLU makes of a value that nothing else reads, or the value: engines compute both in one step."""
    reader = links.readers.get(value, [None])[0]
    if reader is None or not links.only_read_by_one(value):
        return value
    is_relu = is_standard(reader, "Relu") or (is_standard(reader, "Clip") and _least(reader, links) == 0)
    return reader.output[0] if is_relu else value


def _least(clip: onnx.NodeProto, links: Links) -> float | None:
    bound = attribute(clip, "min")  # before opset 11
    if bound is None and len(clip.input) > 1 and clip.input[1]:
        values = links.array(clip.input[1])
        bound = None if values is None or values.size != 1 else values.item()
    return bound


def _on_grid(
    graph: onnx.GraphProto, layers: Collection[Layer], links: Links, table: Mapping[str, ValueType]
) -> dict[str, str]:
    """For engines that compute in integers what stands between rounded values: inputs and results of all layers.

    What is moved (pooled by maximum, split) stays on its grid. What is put together with such a value is rounded, too:
    of IBN-a's two halves the one that a float instance normalisation made, on the grid of the whole.
    """
    owners = {value: value for layer in layers for value in (layer.input, layer.result)}
    for node in graph.node:
        if node.op_type in _MOVES and is_standard(node, node.op_type) and node.input[0] in owners:
            for name in node.output:
                if name and _is_float_map(name, table):
                    owners[name] = owners[node.input[0]]
        elif is_standard(node, "Concat"):
            whole = _after_relu(node.output[0], links)
            if whole in owners and any(name in owners for name in node.input):
                owners.update({name: owners[whole] for name in node.input if name not in owners})
    return {name: owner for name, owner in owners.items() if name not in links.constants}


def _for_tensorrt(
    graph: onnx.GraphProto, layers: Collection[Layer], links: Links, table: Mapping[str, ValueType]
) -> Placement:
    """For TensorRT: inputs of layers, and of a sum the one that comes past them."""
    by_weight_and_input = {(layer.weight, layer.input) for layer in layers}
    place_of = {name: i for i, node in enumerate(graph.node) for name in node.output}
    made_by_layer = {
        node.output[0]: node.input[0]
        for node in graph.node
        if len(node.input) > 1 and (node.input[1], node.input[0]) in by_weight_and_input
    }
    readers: dict[str, set[str]] = {}
    for result, source in made_by_layer.items():
        readers.setdefault(source, set()).add(result)
    for node in graph.node:
        if is_standard(node, "Add") and all(_is_float_map(name, table) for name in node.input):
            past = _past_the_layers(node, links, made_by_layer, place_of)
            if past is not None and past not in links.constants:
                readers.setdefault(past, set()).add(node.output[0])
    order = sorted(readers, key=lambda name: place_of.get(name, -1))
    return Placement(
        "tensorrt", tuple(layers), {name: name for name in order}, {n: frozenset(readers[n]) for n in order}
    )


def _past_the_layers(
    node: onnx.NodeProto, links: Links, made_by_layer: Mapping[str, str], place_of: Mapping[str, int]
) -> str | None:
    """The input of a sum that a layer did not make; of two such the one whose own input was made first.

    None where no layer takes part: that sum is no residual block's.
    """
    made = [name for name in node.input if name in made_by_layer and links.only_read_by_one(name)]
    if not made:
        return None
    others = [name for name in node.input if name not in made]
    if others:
        return others[0]
    return min(made, key=lambda name: place_of.get(made_by_layer[name], -1))


def _is_float_map(name: str, table: Mapping[str, ValueType]) -> bool:
    known = table.get(name)
    return known is not None and known.element == TensorProto.FLOAT and known.shape is not None and not is_point(known)
