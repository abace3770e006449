"""Rewrites a foreign graph: pre-processing goes inside, other outputs fall away, the batch size is set free.

Every function gives a new model and leaves the one it got as it was.
"""

from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from reidkit.deploy.foreign_proof import ImageInput
from reidkit.onnx_file import is_standard
from reidkit.runtime.contract import CROPS, EMBEDDINGS
from reidkit.types import InputSpec

Message = TypeVar("Message", onnx.ModelProto, onnx.NodeProto, onnx.TensorProto, onnx.SparseTensorProto)

_PIXELS, _ORDERED, _SCALED, _CENTRED, _ARRANGED, _FLAT = (
    f"reidkit_{step}" for step in ("pixels", "ordered", "scaled", "centred", "arranged", "flat")
)
_BGR, _FACTOR, _OFFSET = "reidkit_bgr", "reidkit_factor", "reidkit_offset"
_OURS = (CROPS, EMBEDDINGS, _PIXELS, _ORDERED, _SCALED, _CENTRED, _ARRANGED, _FLAT, _BGR, _FACTOR, _OFFSET)

_OLDEST_IR = 4  # the first in which an initialiser is a constant and need not be an input


def with_preprocessing(
    model: onnx.ModelProto, image: ImageInput, output: str, spec: InputSpec, *, dim: int, batch: int | None
) -> onnx.ModelProto:
    """Puts the spec's pre-processing in front of a network and cuts it down to one output.

    The result takes `crops`, uint8 (n, height, width, 3) RGB, and gives `embeddings`, float32 (n, dim). Names of the
    network stay as they are, but for those that these need. Its operators and functions stay too; ONNX IR 3 becomes 4.

    Args:
        model: the network.
        image: its input.
        output: its output that holds the embeddings: rank 2, or 4 with one pixel.
        spec: size and pre-processing.
        dim: width of an embedding.
        batch: the only batch size, or None for any.
    """
    taken = set(_all_names(model.graph))
    names = {name: _free_name(f"{name}_of_network", taken) for name in _OURS if name in taken}
    nodes, needed = _ancestors(model.graph, output)
    for node in nodes:
        _rename(node, names)
    weights = [_copy(tensor) for tensor in model.graph.initializer if tensor.name in needed]
    sparse = [_copy(tensor) for tensor in model.graph.sparse_initializer if tensor.values.name in needed]
    for tensor in (*weights, *(item.values for item in sparse)):
        tensor.name = names.get(tensor.name, tensor.name)
    before, constants = _preprocessing(spec, image, names.get(image.name, image.name))
    after = _flattening(names.get(output, output))
    rows = "n" if batch is None else batch
    graph = helper.make_graph(
        [*before, *nodes, *after],
        model.graph.name or "network",
        [helper.make_tensor_value_info(CROPS, TensorProto.UINT8, [rows, spec.height, spec.width, 3])],
        [helper.make_tensor_value_info(EMBEDDINGS, TensorProto.FLOAT, [rows, dim])],
        initializer=[*constants, *weights],
        sparse_initializer=sparse,
    )
    result = helper.make_model(
        graph,
        opset_imports=list(model.opset_import),
        functions=list(model.functions),
        ir_version=max(model.ir_version, _OLDEST_IR),
        producer_name=model.producer_name,
        producer_version=model.producer_version,
    )
    result.metadata_props.extend(model.metadata_props)
    return result


def with_free_reshapes(model: onnx.ModelProto, batch: int) -> onnx.ModelProto | None:
    """Lets every Reshape to constant sizes take any batch, where the constant was traced from batches of `batch`.

    A leading size becomes -1 when the others are given, and stays right for tensors that hold no batch; when another
    size is -1 already, a leading `batch` becomes 0, "as in the input". Whether that holds for this network only a run
    can tell. None where nothing was to be done.
    """
    result = _copy(model)
    constants = dict(_constants(model.graph))
    weights = {tensor.name for tensor in model.graph.initializer}
    taken = set(_all_names(model.graph))
    for node in result.graph.node:
        if not is_standard(node, "Reshape") or node.input[0] in weights or node.input[1] not in constants:
            continue
        literal_zero = any(attribute.name == "allowzero" and attribute.i for attribute in node.attribute)
        sizes = _freed(constants[node.input[1]], batch, literal_zero=literal_zero)
        if sizes is not None:
            node.input[1] = _free_name("reidkit_sizes", taken)
            result.graph.initializer.append(numpy_helper.from_array(sizes, node.input[1]))
    return result if len(result.graph.initializer) > len(model.graph.initializer) else None


def _freed(sizes: np.ndarray, batch: int, *, literal_zero: bool) -> np.ndarray | None:
    if sizes.ndim != 1 or len(sizes) == 0 or sizes[0] <= 0 or sizes[0] % batch:
        return None
    first = -1
    if -1 in sizes[1:]:
        if literal_zero or sizes[0] != batch:
            return None
        first = 0
    return np.array([first, *sizes[1:]], dtype=np.int64)


def _preprocessing(
    spec: InputSpec, image: ImageInput, target: str
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The network's layout, `(pixel / scale - mean) / std` as one Mul and one Sub by channel, then its type."""
    std, mean = np.array(spec.std, dtype=np.float64), np.array(spec.mean, dtype=np.float64)
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [("Cast", [], _PIXELS, {"to": TensorProto.FLOAT})]
    axis, by_channel = 3, (3,)
    if image.layout == "nchw":
        # The turn comes first: factors that change with every value take engines ten times as long.
        steps.append(("Transpose", [], _ARRANGED, {"perm": [0, 3, 1, 2]}))
        axis, by_channel = 1, (3, 1, 1)
    constants = [
        numpy_helper.from_array((1 / (spec.scale * std)).astype(np.float32).reshape(by_channel), _FACTOR),
        numpy_helper.from_array((mean / std).astype(np.float32).reshape(by_channel), _OFFSET),
    ]
    if spec.color == "bgr":
        constants.append(numpy_helper.from_array(np.array([2, 1, 0], dtype=np.int64), _BGR))
        steps.append(("Gather", [_BGR], _ORDERED, {"axis": axis}))
    steps += [("Mul", [_FACTOR], _SCALED, {}), ("Sub", [_OFFSET], _CENTRED, {})]
    if image.dtype == np.float16:
        steps.append(("Cast", [], target, {"to": TensorProto.FLOAT16}))
    nodes, value = [], CROPS
    for i, (operator, others, result, attributes) in enumerate(steps):
        inputs, outputs = [value, *others], [target if i == len(steps) - 1 else result]
        nodes.append(helper.make_node(operator, inputs, outputs, name=f"reidkit_{i}_{operator}", **attributes))
        value = result
    return nodes, constants


def _flattening(output: str) -> list[onnx.NodeProto]:
    """From (n, dim), (n, dim, 1, 1) or (n, 1, 1, dim) of any float type to float32 (n, dim)."""
    return [
        helper.make_node("Flatten", [output], [_FLAT], name="reidkit_Flatten", axis=1),
        helper.make_node("Cast", [_FLAT], [EMBEDDINGS], name="reidkit_Cast_out", to=TensorProto.FLOAT),
    ]


def _ancestors(graph: onnx.GraphProto, output: str) -> tuple[list[onnx.NodeProto], set[str]]:
    """Copies of the nodes that `output` is made by, in order, and the names of all values that they read."""
    needed, nodes = {output}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(_copy(node))
            needed.update(_reads(node))
    return nodes[::-1], needed


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for graph in _subgraphs(node):
        # A branch or a loop body may read any value of the graphs around it.
        for inner in graph.node:
            yield from _reads(inner)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _named(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto | onnx.TensorProto]:
    yield from (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    yield from (tensor.values for tensor in graph.sparse_initializer)


def _all_names(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (value.name for value in _named(graph))
    for node in graph.node:
        yield from (*node.input, *node.output)
        for inner in _subgraphs(node):
            yield from _all_names(inner)


def _rename(node: onnx.NodeProto, names: dict[str, str]) -> None:
    # No name may be used twice, in inner graphs either, so one table serves them all.
    node.input[:] = [names.get(name, name) for name in node.input]
    node.output[:] = [names.get(name, name) for name in node.output]
    for graph in _subgraphs(node):
        for value in _named(graph):
            value.name = names.get(value.name, value.name)
        for inner in graph.node:
            _rename(inner, names)


def _free_name(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, np.ndarray]]:
    """The int64 values that the graph states, by name: sizes and axes, not weights."""
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.INT64:
            yield tensor.name, numpy_helper.to_array(tensor)
    for node in graph.node:
        if is_standard(node, "Constant"):
            for attribute in node.attribute:
                if attribute.name == "value" and attribute.t.data_type == TensorProto.INT64:
                    yield node.output[0], numpy_helper.to_array(attribute.t)
                elif attribute.name == "value_ints":
                    yield node.output[0], np.array(attribute.ints, dtype=np.int64)


def _copy(message: Message) -> Message:
    result = type(message)()
    result.CopyFrom(message)
    return result
