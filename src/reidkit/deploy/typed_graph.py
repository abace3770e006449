"""Types live in the graph: a float32 graph becomes one that says of every value whether it is float32 or lower.

Engines then only obey. What is computed in what follows from the operators:

- Layers with weights and products of matrices are low, and so is what stands between them (sums, activations, gates,
  moves, small pools): it follows its data. Pixels are float32 until the first layer.
- Normalisations, softmax, means and maxima over positions, powers, roots and quotients are float32. Whole
  normalisations give their result back in the type that they got it in; the parts of one stay float32 among themselves.
- Everything is float32 from where nothing has positions any more: embedding layer and neck. A gate of channels leads
  back to a map, and is no such end.
- So is every node with numbers that the low type does not hold: some leave its range, or rounding them costs more than
  rounding does, since they are flushed to zero. The network stays as faithful as it was and that node costs more.
"""

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from reidkit.deploy.graph_cleanup import cleaned, join_halves, write_out_hard_swish
from reidkit.deploy.graph_links import (
    Links,
    ValueType,
    attribute,
    copied,
    copied_node,
    drop_unused,
    free_name,
    is_point,
    positionless,
    replace_all,
    value_table,
)
from reidkit.deploy.low_types import ELEMENTS, converted
from reidkit.deploy.network.layers import Kind
from reidkit.deploy.network.low_numbers import is_held, rounded
from reidkit.deploy.quantize.placement import QUANTIZED_OPERATORS
from reidkit.errors import ModelError, require_one_of
from reidkit.onnx_file import is_standard, standard_opset

_KINDS: dict[int, Kind] = {element: kind for kind, element in ELEMENTS.items()}
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"})
# fmt: off
_NEUTRAL = frozenset({
    "Abs", "Add", "AveragePool", "Ceil", "Celu", "Clip", "Concat", "DepthToSpace", "Div", "Elu", "Erf", "Expand",
    "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Gelu", "HardSigmoid", "HardSwish", "Identity",
    "LeakyRelu", "Max", "MaxPool", "Min", "Mul", "Neg", "PRelu", "Pad", "Relu", "Reshape", "Resize", "Round", "Selu",
    "Sigmoid", "Sign", "Slice", "Softsign", "SpaceToDepth", "Split", "Squeeze", "Sub", "Sum", "Swish", "Tanh",
    "ThresholdedRelu", "Tile", "Transpose", "Unsqueeze", "Upsample", "Where"
})
_PARTS = frozenset({
    "CumSum", "Div", "Exp", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "Log", "LpPool", "Pow",
    "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceProd", "ReduceSum", "ReduceSumSquare", "Sqrt"
})
"""Float32, and so is what follows; all other operators not listed above are float32 and give back what they got."""
# fmt: on
_ROUND_IN_LOW_TYPES = 19  # the first opset whose pairs of Q and DQ take float16
_LEAST_FLOAT16 = np.float32(2.0**-24)

_TOLD = frozenset({"Shape", "Size"})  # take any type
_FLOAT32_INPUTS = {"Resize": (1, 2), "Upsample": (1,)}
_SMALL_WINDOW = 64  # positions that an average may be taken over in a low type
_SOME_BATCH = 3  # to work out sizes with; any but 1 would do
_WITH_BFLOAT16, _IR_OF_BFLOAT16 = 22, 10
_CHANGED_SINCE_18 = frozenset({"DFT", "GridSample", "GroupNormalization"})


def typed_graph(
    model: onnx.ModelProto, kind: Kind, *, low_instance_norm: bool = False, rounded_by_us: bool = False
) -> onnx.ModelProto:
    """The graph, cleaned (see `graph_cleanup.cleaned`), with maps of a type and casts where types meet.

    Inputs and outputs stay as they are. Every value has one type that it is made in; it is cast to the other at most
    once, and never back. Weights are converted once. IBN-a becomes one instance normalisation of all channels and one
    sum with what is kept (`graph_cleanup.join_halves`), so that no map is split and put together again.

    A graph that has types of its own already, float16 inside or quantised, is given back as it is where `kind` is the
    float type it has. A bfloat16 graph gets the first opset with convolutions in bfloat16, 22, where nothing changed on
    the way for its operators (from opset 18 on); else it keeps its own, in which TensorRT's parsers take them as well.

    Args:
        model: a bundle's graph, its weights inside.
        kind: of the maps. "float32" only cleans.
        low_instance_norm: tell instance normalisations in the type of their maps, for an engine that computes float32
            inside in any case; else they are float32, and so are those of weights that are computed, or not held.
        rounded_by_us: the graph has pairs of Q and DQ from `quantize.emit`. They stay, each in the type of its map, and
            weights behind one become integers.

    Raises:
        ConfigError: no such kind.
        ModelError: a graph of other types than asked for; branches, loops or unknown operators, whose types cannot be
            told, where `kind` is not float32.
    """
    require_one_of("type of maps", kind, ELEMENTS)
    if not rounded_by_us and _has_own_types(model, kind):
        return copied(model)
    result = cleaned(model)
    if rounded_by_us and kind != "float32":
        _store_rounded_weights(result.graph)
        _raise_opset(result, _ROUND_IN_LOW_TYPES)
    table = value_table(result, batch=_SOME_BATCH)
    if kind != "float32":
        _check_typeable(result, table, kind)
    join_halves(result.graph, table)
    if kind == "bfloat16":
        write_out_hard_swish(result.graph, table)
        _raise_opset(result, _WITH_BFLOAT16)
    writer = _Writer(result, table, kind, low_norms=low_instance_norm)
    for node in list(result.graph.node):
        writer.write(node)
    replace_all(result.graph.node, writer.nodes)
    drop_unused(result.graph)
    return result


def value_types(model: onnx.ModelProto) -> dict[str, Kind]:
    """The type of every float value of a graph, weights included, by name.

    Values behind operators that ONNX does not know are left out.
    """
    return {name: _KINDS[known.element] for name, known in value_table(model).items() if known.element in _KINDS}


def _has_own_types(model: onnx.ModelProto, kind: Kind) -> bool:
    """Whether a graph has been given types before, and they are these.

    Raises:
        ModelError: it has, and they are others.
    """
    elements = {known.element for known in value_table(model).values()}
    own = [name for name in ("float16", "bfloat16") if ELEMENTS[name] in elements]
    quantized = any(node.op_type in QUANTIZED_OPERATORS for node in model.graph.node)
    if not own and not quantized:
        return False
    if (own or ["float32"]) == [kind]:
        return True
    what = " and ".join([*own, *(["int8"] if quantized else [])])
    fix = f"ask for {own[0]}" if len(own) == 1 else "import the float32 network that it was made from"
    raise ModelError(
        "The graph has types of its own", got=what, expected=f"float32 throughout, to make {kind}", fix=fix
    )


def _check_typeable(model: onnx.ModelProto, table: dict[str, ValueType], kind: Kind) -> None:
    fix = "take float32, or export the network again with standard operators"
    for node in model.graph.node:
        where = f"of {node.op_type} node {node.name or node.output[0]!r}"
        if any(found.type == onnx.AttributeProto.GRAPH for found in node.attribute):
            raise ModelError(f"The types inside {where[3:]} cannot be told", got="a branch or a loop", fix=fix)
        for name in filter(None, (*node.input, *node.output)):
            if name not in table:
                raise ModelError(
                    f"The type of value {name!r} {where} is not known", got=node.domain or "no type", fix=fix
                )
            if table[name].element == TensorProto.DOUBLE:
                raise ModelError(f"Value {name!r} {where} is float64", expected=f"float32, to make {kind}", fix=fix)


def _store_rounded_weights(graph: onnx.GraphProto) -> None:
    """Integers in place of float weights and the Q behind them: in a low type the weights would be rounded twice."""
    links, nodes = Links(graph), []
    for node in graph.node:
        weight = links.array(node.input[0]) if is_standard(node, "QuantizeLinear") else None
        if weight is None:
            nodes.append(copied_node(node))
            continue
        step, zero = links.array(node.input[1]), links.array(node.input[2])
        assert step is not None
        assert zero is not None
        step = np.maximum(step, _LEAST_FLOAT16)  # a channel of next to no weights, whose step would become 0
        told = links.add_constant(step, node.input[1])
        sides = [1] * weight.ndim
        sides[attribute(node, "axis", 1)] = -1
        limits = np.iinfo(zero.dtype)
        integers = np.rint(weight / step.reshape(sides)) + zero.reshape(sides)
        stored = links.add_constant(np.clip(integers, limits.min, limits.max).astype(zero.dtype), node.output[0])
        for reader in links.readers[node.output[0]]:
            reader.input[:2] = stored, told
    replace_all(graph.node, nodes)
    drop_unused(graph)


def _raise_opset(model: onnx.ModelProto, opset: int) -> None:
    unchanged = not any(node.op_type in _CHANGED_SINCE_18 for node in model.graph.node)
    if unchanged and 18 <= standard_opset(model) < opset:
        others = [entry for entry in model.opset_import if entry.domain not in {"", "ai.onnx"}]
        replace_all(model.opset_import, [*others, helper.make_opsetid("", opset)])
        model.ir_version = max(model.ir_version, _IR_OF_BFLOAT16)


class _Writer:
    """Writes a graph's nodes again, each in its type."""

    def __init__(self, model: onnx.ModelProto, table: dict[str, ValueType], kind: Kind, *, low_norms: bool) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._links = Links(model.graph)
        self._table = table
        self._low: Kind = kind
        self._low_norms = low_norms
        self._outputs = {value.name for value in model.graph.output}
        self._end = positionless(model.graph, self._links, table)
        self._made_in: dict[str, Kind] = {}
        self._seen_as: dict[str, Kind] = {}  # what follows a value takes this type
        self._names: dict[tuple[str, Kind], str] = {}
        self._holds: dict[str, bool] = {}

    def write(self, node: onnx.NodeProto) -> None:
        """Writes one node, and the casts that it needs."""
        if is_standard(node, "InstanceNormalization"):
            self._write_instance_norm(node)
            return
        made_in, seen_as = self._kinds(node)
        result = copied_node(node)
        for place, name in enumerate(node.input):
            if self._is_float(name) and place not in _FLOAT32_INPUTS.get(node.op_type, ()):
                kind = self._kind(name) if node.op_type in _TOLD else made_in
                result.input[place] = self._as(name, kind)
        late = []
        for place, name in enumerate(node.output):
            if self._is_float(name):
                result.output[place] = self._define(name, made_in, seen_as)
                if result.output[place] != name:
                    late.append(name)
        self.nodes.append(result)
        for name in late:
            self._cast(self._names[name, made_in], "float32", name)

    def _kinds(self, node: onnx.NodeProto) -> tuple[Kind, Kind]:
        """The type that a node computes in, and the type that its result is seen as."""
        floats = [name for name in node.input if self._is_float(name)]
        computed = [name for name in floats if name not in self._links.constants]
        if self._low == "float32" or node.output[0] in self._end or not floats:
            made = not any(node.input) or node.op_type == "ConstantOfShape"
            return "float32", self._low if made and node.output[0] not in self._end else "float32"
        standard = is_standard(node, node.op_type)
        if standard and node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            follows = node.op_type == "DequantizeLinear" or self._seen(node.input[0]) == self._low
            kind = self._low if follows and self._held(floats) else "float32"
            return kind, kind
        if standard and node.op_type in _LAYERS:
            kind = self._low if self._held(floats) else "float32"
            return kind, kind
        if standard and node.op_type in _NEUTRAL and not self._is_statistic(node):
            if not computed:  # arithmetic on constants is exact, what comes of it joins the maps
                return "float32", self._low
            kind = self._low if self._is_low(computed, node) and self._fits(node, floats) else "float32"
            return kind, kind
        if standard and node.op_type in _PARTS:
            return "float32", "float32"
        return "float32", self._low if any(self._seen(name) == self._low for name in computed) else "float32"

    def _is_statistic(self, node: onnx.NodeProto) -> bool:
        """Whether a node of a neutral kind is none: a quotient of computed values, a mean over many positions."""
        if node.op_type == "Div":
            return node.input[1] not in self._links.constants
        if node.op_type == "AveragePool":
            return prod(attribute(node, "kernel_shape")) > _SMALL_WINDOW or is_point(self._table[node.output[0]])
        return False

    def _is_low(self, operands: Sequence[str], node: onnx.NodeProto) -> bool:
        """Whether a node that follows its data has low data.

        Where types meet, a float32 map joins the low one, but a number for a whole map is a statistic, and stays.
        """
        wide = [name for name in operands if self._seen(name) == "float32"]
        if len(wide) in {0, len(operands)}:
            return not wide
        if node.op_type == "Concat":
            return True
        whole = _size(self._table[node.output[0]])
        return whole is not None and all(_size(self._table[name]) == whole for name in wide)

    def _fits(self, node: onnx.NodeProto, floats: Sequence[str]) -> bool:
        """Whether a neutral node's constants are held by the low type; bounds have to be held exactly."""
        if node.op_type != "Clip":
            return self._held(floats)
        arrays = [self._links.array(name) for name in floats]
        bounds = [*(array for array in arrays if array is not None), attribute(node, "min"), attribute(node, "max")]
        numbers = np.array([bound for bound in bounds if bound is not None], np.float32)
        return bool((rounded(numbers, self._low) == numbers).all())

    def _held(self, names: Sequence[str]) -> bool:
        """Whether the low type holds all constants among these."""
        for name in names:
            if name in self._links.constants and name not in self._holds:
                self._holds[name] = is_held(numpy_helper.to_array(self._links.constants[name]), self._low)
        return all(self._holds.get(name, True) for name in names)

    def _is_float(self, name: str) -> bool:
        known = self._table.get(name)
        return known is not None and known.element == TensorProto.FLOAT

    def _kind(self, name: str) -> Kind:
        return self._made_in.get(name, "float32")

    def _seen(self, name: str) -> Kind:
        return self._seen_as.get(name, "float32")

    def _define(self, name: str, made_in: Kind, seen_as: Kind) -> str:
        """Notes a new value, and gives the name that it is to be made under."""
        self._made_in[name], self._seen_as[name] = made_in, seen_as
        actual = name
        if name in self._outputs and made_in != "float32":
            actual = free_name(f"{name}_{made_in}", self._links.taken)
            self._names[name, "float32"] = name
        self._names[name, made_in] = actual
        return actual

    def _as(self, name: str, kind: Kind) -> str:
        """The name of a value in a type; it is cast, or a constant converted, at the first time."""
        if kind == self._kind(name):
            return self._names.get((name, kind), name)
        if (name, kind) not in self._names:
            actual = self._names[name, kind] = free_name(f"{name}_{kind}", self._links.taken)
            if name in self._links.constants:
                self._links.graph.initializer.append(converted(self._links.constants[name], kind, actual))
            else:
                self._cast(self._names.get((name, self._kind(name)), name), kind, actual)
        return self._names[name, kind]

    def _cast(self, source: str, kind: Kind, result: str) -> None:
        name = free_name(f"{result}_cast", self._links.taken)
        self.nodes.append(helper.make_node("Cast", [source], [result], name=name, to=ELEMENTS[kind]))

    def _write_instance_norm(self, node: onnx.NodeProto) -> None:
        """An instance normalisation, and the sum with channels that it only keeps; see `join_halves`."""
        x, result, weights = node.input[0], node.output[0], node.input[1:3]
        kind = "float32" if result in self._end else self._seen(x)
        low = self._low_norms and all(name in self._links.constants for name in weights) and self._held(weights)
        within = kind if low else "float32"
        inputs = [self._as(name, within) for name in (x, *weights)]
        if len(node.input) == 3:
            made = self._define(result, within, kind)
        else:
            made = free_name(f"{result}_normed", self._links.taken)
        norm = helper.make_node(node.op_type, inputs, [made], name=node.name or made)
        norm.attribute.extend(node.attribute)
        self.nodes.append(norm)
        if len(node.input) > 3:
            if within != kind:
                normed, made = made, free_name(f"{made}_{kind}", self._links.taken)
                self._cast(normed, kind, made)
            kept = free_name(f"{result}_kept", self._links.taken)
            self._step("Mul", [self._as(x, kind), self._as(node.input[3], kind)], kept)
            made = self._step("Add", [made, kept], self._define(result, kind, kind))
        if made != result:
            self._cast(made, "float32", result)

    def _step(self, operator: str, inputs: Sequence[str], result: str) -> str:
        name = free_name(f"{result}_{operator}", self._links.taken)
        self.nodes.append(helper.make_node(operator, inputs, [result], name=name))
        return result


def _size(known: ValueType) -> int | None:
    return None if known.shape is None or None in known.shape else prod(size or 0 for size in known.shape)
