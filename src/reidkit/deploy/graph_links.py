"""An ONNX graph as something to walk in: what is known of each value, who makes it and who reads it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = tuple[int | None, ...]

_FEW = 64  # numbers: a tensor of so few may be the factors of a Resize, which decide sizes


@dataclass(frozen=True, slots=True)
class ValueType:
    """What is known of a value.

    Attributes:
        element: ONNX's number of its type.
        shape: None where not even the rank is known, and for a size that is not.
    """

    element: int
    shape: Shape | None


def value_table(model: onnx.ModelProto, *, batch: int | None = None) -> dict[str, ValueType]:
    """Types and shapes of all values of a graph, as far as ONNX can infer them.

    Args:
        model: the graph.
        batch: the first size of every input where that is dynamic; sizes that depend on it are then known too.
    """
    bare = _without_weights(model)
    if batch is not None:
        for value in bare.graph.input:
            dims = value.type.tensor_type.shape.dim
            if dims and dims[0].dim_value == 0:
                dims[0].dim_value = batch
        for value in bare.graph.output:
            value.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    table = {tensor.name: ValueType(tensor.data_type, tuple(tensor.dims)) for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        tensor = value.type.tensor_type
        if tensor.elem_type:
            shape = tuple(dim.dim_value or None for dim in tensor.shape.dim) if tensor.HasField("shape") else None
            table.setdefault(value.name, ValueType(tensor.elem_type, shape))
    return table


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute."""
    return next((helper.get_attribute_value(found) for found in node.attribute if found.name == name), default)


def captured_names(graph: onnx.GraphProto) -> set[str]:
    """Values that branches and loop bodies inside a graph's nodes may read from it."""
    return {name for node in graph.node for inner in _subgraphs(node) for name in _reads(inner)}


def free_name(name: str, taken: set[str]) -> str:
    """The name, longer where it is taken; it is taken from now on."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that may be changed."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    return result


def drop_unused(graph: onnx.GraphProto) -> None:
    """Drops the nodes and initialisers that no output depends on."""
    needed, nodes = {value.name for value in graph.output}, []
    for node in reversed(graph.node):
        if needed.intersection(filter(None, node.output)):
            nodes.append(node)
            needed.update(node.input, *(_reads(inner) for inner in _subgraphs(node)))
    replace_all(graph.node, [copied_node(node) for node in reversed(nodes)])
    for place in reversed([i for i, tensor in enumerate(graph.initializer) if tensor.name not in needed]):
        del graph.initializer[place]


def copied_node(node: onnx.NodeProto) -> onnx.NodeProto:
    """A copy that may be changed."""
    result = onnx.NodeProto()
    result.CopyFrom(node)
    return result


class Links:
    """Who makes and who reads each value of a graph, and its constants.

    Attributes:
        graph: the one that is read.
        makers: by value, the node that makes it.
        readers: by value, the nodes that read it.
        constants: float and integer initialisers, by name.
        pinned: values that must stay by name: outputs, and what inner graphs read.
        taken: all names in use, of values and nodes.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.makers: dict[str, onnx.NodeProto] = {}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.pinned = {value.name for value in graph.output} | captured_names(graph)
        self.taken = {*self.constants, *(value.name for value in graph.input), *self.pinned}
        for node in graph.node:
            self.taken.update((node.name,), node.input, node.output)
            for name in node.output:
                self.makers[name] = node
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def array(self, name: str) -> np.ndarray | None:
        """A constant's values; None for what is computed."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def only_read_by_one(self, name: str) -> bool:
        """Whether a value has one reader and is needed nowhere else."""
        return len(self.readers.get(name, ())) == 1 and name not in self.pinned

    def add_constant(self, values: np.ndarray, name: str) -> str:
        """Puts an initialiser in, under this name or one like it."""
        name = free_name(name, self.taken)
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
        self.constants[name] = self.graph.initializer[-1]
        return name


def split_sizes(node: onnx.NodeProto, links: Links, whole: int | None) -> list[int] | None:
    """The sizes that a Split gives, in whatever opset; None where they are computed."""
    sizes = attribute(node, "split")
    if sizes is None and len(node.input) > 1 and node.input[1]:
        sizes = links.array(node.input[1])
        if sizes is None:
            return None
    if sizes is not None:
        return [int(size) for size in sizes]
    if whole is None:
        return None
    part = -(-whole // len(node.output))
    return [min(part, whole - part * i) for i in range(len(node.output))]


def positionless(graph: onnx.GraphProto, links: Links, table: Mapping[str, ValueType]) -> set[str]:
    """The float values from where on nothing has positions any more."""
    end: set[str] = set()
    for node in reversed(graph.node):
        floats = [name for name in node.output if name in table and table[name].element == TensorProto.FLOAT]
        followers = [reader for name in floats for reader in links.readers.get(name, ())]
        onward = [name for reader in followers for name in reader.output if name in table and name not in end]
        leads_back = any(table[name].element == TensorProto.FLOAT for name in onward)
        if floats and all(is_point(table[name]) for name in floats) and not leads_back:
            end.update(floats)
    return end


def is_point(known: ValueType) -> bool:
    """Whether a value is one row of numbers for each crop: n x c, n x c x 1 x 1, n x 1 x c."""
    return known.shape is not None and sum(size != 1 for size in known.shape[1:]) <= 1


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with float weights that have a shape and no values: inference reads no more of them."""
    result = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = result.graph
    graph.name = model.graph.name
    for name in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(graph, name).extend(getattr(model.graph, name))
    for tensor in model.graph.initializer:
        if tensor.data_type in {TensorProto.INT64, TensorProto.INT32} or np.prod(tensor.dims) <= _FEW:
            graph.initializer.append(tensor)
        else:
            graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    return result


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for found in node.attribute:
        if found.type == onnx.AttributeProto.GRAPH:
            yield found.g
        yield from found.graphs


def _reads(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (value.name for value in graph.output)
    for node in graph.node:
        yield from node.input
        for inner in _subgraphs(node):
            yield from _reads(inner)


def replace_all(field: Any, messages: Iterable[Any]) -> None:
    """Puts other messages into a repeated field."""
    messages = list(messages)
    del field[:]
    field.extend(messages)
