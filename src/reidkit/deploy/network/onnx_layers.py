"""Writes a known network as an ONNX graph: no torch, and the same bytes for the same weights."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from jaxtyping import Float32
from onnx import TensorProto, helper, numpy_helper

from reidkit.architecture import ModelSpec
from reidkit.deploy.network.description import write_network
from reidkit.deploy.network.layers import Kind
from reidkit.deploy.network.shapes import Shape, ShapeLayers
from reidkit.deploy.network.weights import bfloat16_bits
from reidkit.errors import ModelError
from reidkit.runtime.contract import CROPS, EMBEDDINGS
from reidkit.types import InputSpec

OPSET, BFLOAT16_OPSET = 18, 22
"""The newest that every engine in use parses, TensorRT 8.6's parser included; and the first with bfloat16 layers."""

_TYPES: dict[Kind, int] = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}


def onnx_network(
    spec: ModelSpec,
    input_: InputSpec,
    tensors: Mapping[str, np.ndarray],
    *,
    kind: Kind = "float32",
    source: str = "the file",
) -> bytes:
    """A known network as ONNX: `crops` (uint8, n x height x width x 3) to `embeddings` (float32, n x dim), any n.

    Args:
        spec: of the network.
        input_: size of the crops and pre-processing.
        tensors: weights by canonical name.
        kind: of the feature maps.
        source: what the weights come from, for the messages.

    Raises:
        ModelError, InputError: as `write_network`; or weights are beyond `kind`.
    """
    layers = OnnxLayers()
    write_network(layers, spec, input_, tensors, kind=kind, source=source)
    model = layers.model(opset=BFLOAT16_OPSET if kind == "bfloat16" else OPSET)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


@dataclass(frozen=True, slots=True)
class OnnxValue:
    """A value of the graph.

    Attributes:
        name: there.
        kind: type.
        shape: channels, height and width.
    """

    name: str
    kind: Kind
    shape: Shape


class OnnxLayers:
    """`Layers` over nodes of ONNX. A node, its output and its constants are named by its operator and a number."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._ends: list[onnx.ValueInfoProto] = []  # the input, and then the output
        self._count: Counter[str] = Counter()
        self._shapes = ShapeLayers()

    def model(self, *, opset: int) -> onnx.ModelProto:
        """The graph of what was written, from `crops` to `embeddings`."""
        graph = helper.make_graph(self._nodes, "network", self._ends[:1], self._ends[1:], self._constants)
        opsets = [helper.make_opsetid("", opset)]
        # The oldest that knows the opset: the library's own newest is too new for many an engine.
        version = helper.find_min_ir_version_for(opsets)
        return helper.make_model(graph, opset_imports=opsets, ir_version=version, producer_name="reidkit")

    def crops(self, spec: InputSpec) -> OnnxValue:
        """See `Layers`; so is all that follows."""
        self._ends.append(helper.make_tensor_value_info(CROPS, TensorProto.UINT8, ["n", spec.height, spec.width, 3]))
        pixels = self._node("Cast", [CROPS], to=TensorProto.FLOAT)
        name = self._node("Transpose", [pixels], perm=[0, 3, 1, 2])
        if spec.color == "bgr":
            name = self._node("Gather", [name], {"order": np.array([2, 1, 0], np.int64)}, axis=1)
        std, mean = np.array(spec.std, np.float64), np.array(spec.mean, np.float64)
        factor, offset = 1 / (spec.scale * std), -mean / std
        x = OnnxValue(name, "float32", self._shapes.crops(spec))
        return self.scale(x, factor.astype(np.float32), offset.astype(np.float32))

    def cast(self, x: OnnxValue, kind: Kind) -> OnnxValue:
        """A Cast, where there is anything to cast."""
        if x.kind == kind:
            return x
        return OnnxValue(self._node("Cast", [x.name], to=_TYPES[kind]), kind, x.shape)

    def shape(self, x: OnnxValue) -> Shape:
        """As noted."""
        return x.shape

    def conv(
        self,
        x: OnnxValue,
        weight: Float32[np.ndarray, "outputs inputs kernel kernel"],
        bias: Float32[np.ndarray, " outputs"] | None = None,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
    ) -> OnnxValue:
        """A Conv."""
        name = self._node(
            "Conv",
            [x.name],
            {"weight": weight} | ({} if bias is None else {"bias": bias}),
            kind=x.kind,
            kernel_shape=list(weight.shape[2:]),
            strides=[stride, stride],
            pads=[padding] * 4,
            group=groups,
        )
        return OnnxValue(name, x.kind, self._shapes.conv(x.shape, weight, stride=stride, padding=padding))

    def scale(
        self, x: OnnxValue, factor: Float32[np.ndarray, " channels"], offset: Float32[np.ndarray, " channels"]
    ) -> OnnxValue:
        """A Mul and an Add."""
        scaled = self._node("Mul", [x.name], {"factor": factor.reshape(1, -1, 1, 1)}, kind=x.kind)
        return OnnxValue(
            self._node("Add", [scaled], {"offset": offset.reshape(1, -1, 1, 1)}, kind=x.kind), x.kind, x.shape
        )

    def instance_norm(
        self,
        x: OnnxValue,
        factor: Float32[np.ndarray, " normed"],
        offset: Float32[np.ndarray, " normed"],
        epsilon: float,
    ) -> OnnxValue:
        """An InstanceNormalization in float32, of a part of the channels where not of all."""
        channels, normed = x.shape[0], len(factor)
        if normed == channels:
            return self._normalized(x, factor, offset, epsilon)
        sizes = {"sizes": np.array([normed, channels - normed], np.int64)}
        first, rest = self._node_of("Split", [x.name], sizes, outputs=("first", "rest"), axis=1)
        part = self._normalized(OnnxValue(first, x.kind, (normed, *x.shape[1:])), factor, offset, epsilon)
        return OnnxValue(self._node("Concat", [part.name, rest], axis=1), x.kind, x.shape)

    def relu(self, x: OnnxValue) -> OnnxValue:
        """A Relu."""
        return OnnxValue(self._node("Relu", [x.name]), x.kind, x.shape)

    def sigmoid(self, x: OnnxValue) -> OnnxValue:
        """A Sigmoid."""
        return OnnxValue(self._node("Sigmoid", [x.name]), x.kind, x.shape)

    def add(self, a: OnnxValue, b: OnnxValue) -> OnnxValue:
        """An Add."""
        return OnnxValue(self._node("Add", [a.name, b.name]), a.kind, a.shape)

    def gate(self, x: OnnxValue, weight: OnnxValue) -> OnnxValue:
        """A Mul."""
        return OnnxValue(self._node("Mul", [x.name, weight.name]), x.kind, x.shape)

    def max_pool(self, x: OnnxValue, *, padding: int, ceil: bool) -> OnnxValue:
        """A MaxPool."""
        windows = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [padding] * 4, "ceil_mode": int(ceil)}
        shape = self._shapes.max_pool(x.shape, padding=padding, ceil=ceil)
        return OnnxValue(self._node("MaxPool", [x.name], **windows), x.kind, shape)

    def halve(self, x: OnnxValue) -> OnnxValue:
        """An AveragePool."""
        name = self._node("AveragePool", [x.name], kernel_shape=[2, 2], strides=[2, 2])
        return OnnxValue(name, x.kind, self._shapes.halve(x.shape))

    def mean(self, x: OnnxValue) -> OnnxValue:
        """A GlobalAveragePool."""
        return OnnxValue(self._node("GlobalAveragePool", [x.name]), x.kind, self._shapes.mean(x.shape))

    def maximum(self, x: OnnxValue) -> OnnxValue:
        """A GlobalMaxPool."""
        return OnnxValue(self._node("GlobalMaxPool", [x.name]), x.kind, self._shapes.maximum(x.shape))

    def gem(self, x: OnnxValue, p: float) -> OnnxValue:
        """Clip, Pow, GlobalAveragePool, Pow."""
        clipped = self._node("Clip", [x.name], {"least": _scalar(1e-6)})
        powered = self._node("Pow", [clipped], {"p": _scalar(p)})
        averaged = self._node("GlobalAveragePool", [powered])
        name = self._node("Pow", [averaged], {"one_over_p": _scalar(1 / p)})
        return OnnxValue(name, x.kind, self._shapes.gem(x.shape, p))

    def attend(self, g: OnnxValue, theta: OnnxValue, phi: OnnxValue) -> OnnxValue:
        """Two MatMuls, in the order that needs no table of all pairs of positions."""
        inner, height, width = g.shape
        positions = height * width
        flat = [self._reshaped(value.name, inner, positions) for value in (g, theta, phi)]
        share = {"one_over_positions": np.full((1, 1, 1), 1 / positions, np.float32)}
        weighed = self._node("Mul", [flat[2]], share, kind=phi.kind)
        turned = self._node("Transpose", [weighed], perm=[0, 2, 1])
        product = self._node("MatMul", [self._node("MatMul", [flat[0], turned]), flat[1]])
        return OnnxValue(self._reshaped(product, inner, height, width), g.kind, g.shape)

    def rows(self, x: OnnxValue, start: int, stop: int) -> OnnxValue:
        """A Slice."""
        ends = {name: np.array([n], np.int64) for name, n in (("starts", start), ("ends", stop), ("axes", 2))}
        return OnnxValue(self._node("Slice", [x.name], ends), x.kind, self._shapes.rows(x.shape, start, stop))

    def concat(self, parts: Sequence[OnnxValue]) -> OnnxValue:
        """A Concat."""
        name = self._node("Concat", [part.name for part in parts], axis=1)
        return OnnxValue(name, parts[0].kind, self._shapes.concat([part.shape for part in parts]))

    def embeddings(self, x: OnnxValue) -> None:
        """A Flatten."""
        self._nodes.append(helper.make_node("Flatten", [x.name], [EMBEDDINGS], name="Flatten", axis=1))
        self._ends.append(helper.make_tensor_value_info(EMBEDDINGS, TensorProto.FLOAT, ["n", x.shape[0]]))

    def _normalized(self, x: OnnxValue, factor: np.ndarray, offset: np.ndarray, epsilon: float) -> OnnxValue:
        wide = self.cast(x, "float32")
        constants = {"factor": factor, "offset": offset}
        name = self._node("InstanceNormalization", [wide.name], constants, epsilon=epsilon)
        return self.cast(OnnxValue(name, "float32", x.shape), x.kind)

    def _reshaped(self, name: str, *sizes: int) -> str:
        """A value in other axes; the batch stays as it comes."""
        return self._node("Reshape", [name], {"sizes": np.array([0, *sizes], np.int64)})

    def _node(
        self,
        operator: str,
        inputs: Sequence[str],
        constants: Mapping[str, np.ndarray] = MappingProxyType({}),
        *,
        kind: Kind = "float32",
        **attributes: Any,
    ) -> str:
        """Adds a node and names its only output."""
        return self._node_of(operator, inputs, constants, kind=kind, **attributes)[0]

    def _node_of(
        self,
        operator: str,
        inputs: Sequence[str],
        constants: Mapping[str, np.ndarray],
        *,
        kind: Kind = "float32",
        outputs: Sequence[str] = (),
        **attributes: Any,
    ) -> list[str]:
        """Adds a node, and names its outputs.

        Args:
            operator: of the standard domain.
            inputs: values.
            constants: that follow them, by what each is; floats become `kind`.
            kind: type of the value that the node works on.
            outputs: what each is, where there are several.
            attributes: of the operator.
        """
        name = f"{operator}_{self._count[operator]}"
        self._count[operator] += 1
        for part, values in constants.items():
            self._constants.append(_initializer(f"{name}.{part}", values, kind))
        results = [f"{name}.{output}" for output in outputs] or [name]
        inputs = [*inputs, *(f"{name}.{part}" for part in constants)]
        self._nodes.append(helper.make_node(operator, inputs, results, name=name, **attributes))
        return results


def _scalar(value: float) -> Float32[np.ndarray, ""]:
    return np.array(value, np.float32)


def _initializer(name: str, values: np.ndarray, kind: Kind) -> onnx.TensorProto:
    """A constant; whole numbers stay what they are, floats take a type.

    Raises:
        ModelError: a value is beyond that type.
    """
    if values.dtype.kind == "i" or kind == "float32":
        return numpy_helper.from_array(np.ascontiguousarray(values), name)
    if kind == "bfloat16":
        return helper.make_tensor(name, TensorProto.BFLOAT16, values.shape, bfloat16_bits(values).tobytes(), raw=True)
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float16)
    if np.isinf(narrow).any() and np.isfinite(values).all():
        raise ModelError(
            f"The weights {name} are beyond float16",
            got=f"up to {np.abs(values).max():.4g}, with the normalisation behind folded in",
            expected="at most 65504",
            fix="take bfloat16 or float32",
        )
    return numpy_helper.from_array(narrow, name)
