"""Takes out of a graph what only training or an exporter needed: fewer nodes, which compute the same.

Constants are initialisers, what does nothing is gone, and a batch normalisation is part of the convolution before it,
worked out in float64.
"""

import numpy as np
import onnx
import onnx.inliner
from onnx import TensorProto, helper, numpy_helper

from reidkit.deploy.graph_links import (
    Links,
    ValueType,
    attribute,
    copied,
    copied_node,
    drop_unused,
    free_name,
    replace_all,
    split_sizes,
    value_table,
)
from reidkit.onnx_file import is_standard

# fmt: off
_MOVES = frozenset({
    "Cast", "Concat", "Flatten", "Gather", "Identity", "Reshape", "Shape", "Slice", "Split", "Squeeze", "Transpose",
    "Unsqueeze"
})  # of crops, on their way to float
# fmt: on


def cleaned(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without detours that computes the same; inputs and outputs keep their names.

    Local functions are written out and constants become initialisers. Crops are made float before they are moved, since
    TensorRT does nothing else with uint8. Identity, Dropout and casts to the same type are dropped. Batch
    normalisations are folded into the convolution or fully connected layer before them, also through a Split, as IBN-a
    has it; one that stands elsewhere becomes a product and a sum.
    """
    result = onnx.inliner.inline_local_functions(model) if model.functions else copied(model)
    graph = result.graph
    _gather_constants(result)
    _cast_crops_first(graph, value_table(result))
    _drop_idle(graph, value_table(result))
    _fold_batch_norms(graph, value_table(result))
    drop_unused(graph)
    del graph.value_info[:]
    return result


def _gather_constants(model: onnx.ModelProto) -> None:
    """Constant nodes become initialisers; initialisers are no inputs, as they had to be before ONNX IR 4."""
    graph, nodes = model.graph, []
    for node in graph.node:
        tensor = _stated(node) if is_standard(node, "Constant") else None
        if tensor is None:
            nodes.append(copied_node(node))
        else:
            graph.initializer.append(tensor)
    replace_all(graph.node, nodes)
    weights = {tensor.name for tensor in graph.initializer}
    for place in reversed([i for i, value in enumerate(graph.input) if value.name in weights]):
        del graph.input[place]
    model.ir_version = max(model.ir_version, 4)


def _stated(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """What a Constant node says; None for strings and sparse tensors."""
    name, value = node.attribute[0].name, helper.get_attribute_value(node.attribute[0])
    dtypes = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if name == "value":
        tensor = onnx.TensorProto()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
        return tensor
    if name in dtypes:
        return numpy_helper.from_array(np.array(value, dtypes[name]), node.output[0])
    return None


def _cast_crops_first(graph: onnx.GraphProto, table: dict[str, ValueType]) -> None:
    """Puts one cast to float32 behind a uint8 input that is moved first; the casts behind the moves are then idle."""
    for value in graph.input:
        if value.type.tensor_type.elem_type != TensorProto.UINT8:
            continue
        links = Links(graph)
        readers = links.readers.get(value.name, [])
        touching = [node for node in graph.node if any(_is_uint8(name, table) for name in (*node.input, *node.output))]
        movable = all(node.op_type in _MOVES and is_standard(node, node.op_type) for node in touching)
        if not movable or value.name in links.pinned or all(node.op_type == "Cast" for node in readers):
            continue
        pixels = free_name(f"{value.name}_float32", links.taken)
        for node in readers:
            node.input[:] = [pixels if name == value.name else name for name in node.input]
        name = free_name(f"{pixels}_cast", links.taken)
        cast = helper.make_node("Cast", [value.name], [pixels], name=name, to=TensorProto.FLOAT)
        replace_all(graph.node, [cast, *map(copied_node, graph.node)])
        replace_all(graph.value_info, [])


def _is_uint8(name: str, table: dict[str, ValueType]) -> bool:
    return name in table and table[name].element == TensorProto.UINT8


def _drop_idle(graph: onnx.GraphProto, table: dict[str, ValueType]) -> None:
    """Takes out nodes that give what they get."""
    links = Links(graph)
    made = set(links.makers)
    same: dict[str, str] = {}  # value -> the one that it equals
    nodes = []
    for original in graph.node:
        node = copied_node(original)
        node.input[:] = [same.get(name, name) for name in node.input]
        if not _is_idle(node, links, table):
            nodes.append(node)
            continue
        source, result = node.input[0], node.output[0]
        if result not in links.pinned:
            same[result] = source
        elif source in made and source not in links.pinned:
            # The result's name has to stay: whoever made the source makes it under that name, for all its readers.
            for other in nodes:
                other.input[:] = [result if name == source else name for name in other.input]
                other.output[:] = [result if name == source else name for name in other.output]
            same = {name: result if target == source else target for name, target in same.items()}
            same[source] = result
            made.add(result)
        else:
            nodes.append(node)
    replace_all(graph.node, nodes)


def _is_idle(node: onnx.NodeProto, links: Links, table: dict[str, ValueType]) -> bool:
    if is_standard(node, "Cast"):
        known = table.get(node.input[0])
        return known is not None and known.element == attribute(node, "to")
    if is_standard(node, "Dropout"):
        training = links.array(node.input[2]) if len(node.input) > 2 and node.input[2] else np.array(False)
        masks = [name for name in node.output[1:] if name in links.readers or name in links.pinned]
        return not masks and training is not None and not training.any()
    return is_standard(node, "Identity")


def _fold_batch_norms(graph: onnx.GraphProto, table: dict[str, ValueType]) -> None:
    links = Links(graph)
    nodes: list[onnx.NodeProto] = []
    for node in list(graph.node):
        affine = _affine(node, links) if is_standard(node, "BatchNormalization") else None
        if affine is None:
            nodes.append(node)
        elif not _folded(node, links, *affine):
            nodes.extend(_as_product_and_sum(node, links, table, *affine) or [node])
    replace_all(graph.node, [copied_node(node) for node in nodes])


def _affine(node: onnx.NodeProto, links: Links) -> tuple[np.ndarray, np.ndarray] | None:
    """Factor and offset of a batch normalisation in evaluation, float64; None where they are not constants."""
    others = [name for name in node.output[1:] if name in links.readers or name in links.pinned]
    if others or attribute(node, "training_mode", 0) or not attribute(node, "spatial", 1):
        return None
    parameters = [links.array(name) for name in node.input[1:5]]
    arrays = [values.astype(np.float64) for values in parameters if values is not None]
    if len(arrays) < 4:
        return None
    weight, bias, mean, variance = arrays
    factor = weight / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    return factor, bias - mean * factor


def _folded(node: onnx.NodeProto, links: Links, factor: np.ndarray, offset: np.ndarray) -> bool:
    """Puts a batch normalisation into the layer that makes its input, where that is all that the layer is for."""
    source, result = node.input[0], node.output[0]
    maker = links.makers.get(source)
    if maker is None or not links.only_read_by_one(source):
        return False
    if not is_standard(maker, "Split"):
        if not _scale_outputs(maker, links, factor, offset):
            return False
        maker.output[0] = result
        links.makers[result] = maker
        return True
    layer = links.makers.get(maker.input[0])
    outputs = None if layer is None else _output_count(layer, links)
    sizes = split_sizes(maker, links, outputs)
    if layer is None or outputs is None or sizes is None or sum(sizes) != outputs or attribute(maker, "axis", 0) != 1:
        return False
    if not links.only_read_by_one(maker.input[0]) or result in links.pinned:
        return False
    place = list(maker.output).index(source)
    start = sum(sizes[:place])
    factors, offsets = np.ones(outputs), np.zeros(outputs)
    factors[start : start + sizes[place]] = factor
    offsets[start : start + sizes[place]] = offset
    if not _scale_outputs(layer, links, factors, offsets):
        return False
    for reader in links.readers.get(result, ()):
        reader.input[:] = [source if name == result else name for name in reader.input]
    links.readers[source] = links.readers.get(result, [])
    return True


def _output_count(layer: onnx.NodeProto, links: Links) -> int | None:
    weight = links.constants.get(layer.input[1]) if is_standard(layer, "Conv") else None
    return None if weight is None else weight.dims[0]


def _scale_outputs(layer: onnx.NodeProto, links: Links, factor: np.ndarray, offset: np.ndarray) -> bool:
    """Multiplies each output of a layer by a factor and adds an offset, in its weights; False where that cannot be."""
    if not any(is_standard(layer, name) for name in ("Conv", "ConvTranspose", "Gemm")):
        return False
    has_bias = len(layer.input) > 2 and bool(layer.input[2])
    weight, bias = links.array(layer.input[1]), links.array(layer.input[2]) if has_bias else np.zeros(1)
    if weight is None or bias is None or bias.size not in {1, len(factor)}:
        return False
    beta = attribute(layer, "beta", 1.0) if layer.op_type == "Gemm" and has_bias else 1.0
    if beta == 0 or (bias.ndim > 1 and bias.shape[-1] != bias.size):
        return False
    weight = _scaled_outputs(layer, weight.astype(np.float64), factor)
    bias = bias.astype(np.float64).reshape(-1) * factor + offset / beta
    if layer.op_type == "Gemm" and not has_bias:
        for found in layer.attribute:
            if found.name == "beta":
                found.f = 1.0
    names = [
        links.add_constant(values.astype(np.float32), f"{base}_folded")
        for base, values in ((layer.input[1], weight), (layer.input[2] if has_bias else f"{layer.input[1]}_bias", bias))
    ]
    layer.input[:] = [layer.input[0], *names]
    return True


def _scaled_outputs(layer: onnx.NodeProto, weight: np.ndarray, factor: np.ndarray) -> np.ndarray:
    if layer.op_type == "Conv":
        return weight * factor.reshape(-1, *(1,) * (weight.ndim - 1))
    if layer.op_type == "Gemm":
        return weight * (factor[:, None] if attribute(layer, "transB", 0) else factor)
    groups = attribute(layer, "group", 1)  # of a transposed convolution: inputs x outputs of one group x kernel
    split = weight.reshape(groups, -1, *weight.shape[1:])
    return (split * factor.reshape(groups, 1, -1, *(1,) * (weight.ndim - 2))).reshape(weight.shape)


def _as_product_and_sum(
    node: onnx.NodeProto, links: Links, table: dict[str, ValueType], factor: np.ndarray, offset: np.ndarray
) -> list[onnx.NodeProto] | None:
    """A batch normalisation as `x * factor + offset`; None where the rank of x is not known."""
    known = table.get(node.input[0])
    if known is None or known.shape is None:
        return None
    shape = (-1, *(1,) * (len(known.shape) - 2))
    result = node.output[0]
    factors, offsets = (
        links.add_constant(values.reshape(shape).astype(np.float32), f"{result}_{word}")
        for word, values in (("factor", factor), ("offset", offset))
    )
    name = node.name or result
    if not offset.any():
        return [helper.make_node("Mul", [node.input[0], factors], [result], name=f"{name}_factor")]
    product = free_name(f"{result}_product", links.taken)
    return [
        helper.make_node("Mul", [node.input[0], factors], [product], name=f"{name}_factor"),
        helper.make_node("Add", [product, offsets], [result], name=f"{name}_offset"),
    ]


def write_out_hard_swish(graph: onnx.GraphProto, table: dict[str, ValueType]) -> None:
    """`x * HardSigmoid(x)` for HardSwish, which TensorRT's parsers do not take in bfloat16."""
    links, nodes = Links(graph), []
    for node in graph.node:
        if not is_standard(node, "HardSwish"):
            nodes.append(copied_node(node))
            continue
        x, result = node.input[0], node.output[0]
        gate = free_name(f"{result}_gate", links.taken)
        table[gate] = table[x]
        nodes.append(helper.make_node("HardSigmoid", [x], [gate], name=gate, alpha=1 / 6, beta=0.5))
        nodes.append(helper.make_node("Mul", [x, gate], [result], name=node.name))
    replace_all(graph.node, nodes)


def join_halves(graph: onnx.GraphProto, table: dict[str, ValueType]) -> None:
    """Makes one instance normalisation of Split, instance normalisations of some parts, and Concat: IBN-a.

    Only `typed_graph` knows the result, and writes it out: a fourth input is multiplied with the map and added, 1 where
    a channel is not normalised.
    """
    links = Links(graph)
    for concat in list(graph.node):
        joined = _joined(concat, links, table) if is_standard(concat, "Concat") else None
        if joined is not None:
            concat.CopyFrom(joined)
    drop_unused(graph)


def _joined(concat: onnx.NodeProto, links: Links, table: dict[str, ValueType]) -> onnx.NodeProto | None:
    parts, norms = [], []
    for name in concat.input:
        maker = links.makers.get(name)
        norm = maker if maker is not None and is_standard(maker, "InstanceNormalization") else None
        norms.append(norm)
        parts.append(name if norm is None else norm.input[0])
    split = links.makers.get(parts[0])
    if split is None or not is_standard(split, "Split") or list(split.output) != parts or not any(norms):
        return None
    known = table[split.input[0]].shape if split.input[0] in table else None
    if known is None or len(known) < 3:
        return None
    axes = {axis if axis >= 0 else axis + len(known) for axis in (_axis(split), _axis(concat))}
    sizes = split_sizes(split, links, known[1])
    epsilons = {attribute(norm, "epsilon", 1e-5) for norm in norms if norm is not None}
    if axes != {1} or sizes is None or len(epsilons) != 1:
        return None
    columns: list[list[np.ndarray]] = [[], [], []]
    for norm, size in zip(norms, sizes, strict=True):
        arrays = [np.zeros(size), np.zeros(size)] if norm is None else [links.array(name) for name in norm.input[1:3]]
        if arrays[0] is None or arrays[1] is None:
            return None
        for column, values in zip(columns, (*arrays, np.full(size, float(norm is None))), strict=True):
            column.append(np.asarray(values, np.float32))
    factor, offset, kept = (np.concatenate(column) for column in columns)
    given = [factor, offset]
    if kept.any():
        given.append(kept.reshape(-1, *(1,) * (len(known) - 2)))
    inputs = [links.add_constant(values, f"{concat.output[0]}_whole") for values in given]
    return helper.make_node(
        "InstanceNormalization",
        [split.input[0], *inputs],
        [concat.output[0]],
        name=concat.name or concat.output[0],
        epsilon=epsilons.pop(),
    )


def _axis(node: onnx.NodeProto) -> int:
    return attribute(node, "axis", 0)
