"""Writes a known network through TensorRT's network-definition API: any flavour, no parser, no ONNX, no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32

from reidkit.deploy.network.layers import Kind
from reidkit.deploy.network.low_numbers import is_held
from reidkit.deploy.network.shapes import Shape, ShapeLayers
from reidkit.deploy.network.weights import bfloat16_bits
from reidkit.errors import ModelError
from reidkit.runtime.contract import CROPS, EMBEDDINGS
from reidkit.runtime.flavour import Flavour
from reidkit.types import InputSpec

_POSITIONS = 1 << 2 | 1 << 3  # axes of height and width
_SMALLEST = 1e-6  # that GeM lets a value be


@dataclass(frozen=True, slots=True)
class TensorRtValue:
    """A tensor of the network.

    Attributes:
        tensor: the library's.
        kind: type of its values.
        shape: channels, height and width.
    """

    tensor: Any
    kind: Kind
    shape: Shape


class TensorRtLayers:
    """`Layers` over TensorRT.

    Weights have to outlive the build, so keep the writer until then.

    Args:
        flavour: the library.
        network: an empty network of that library.
    """

    def __init__(self, flavour: Flavour, network: Any) -> None:
        self._flavour = flavour
        self._trt = flavour.trt
        self._network = network
        self._shapes = ShapeLayers()
        self._kept: list[np.ndarray] = []
        self._types: dict[Kind, Any] = {"float32": self._trt.float32, "float16": self._trt.float16}
        if hasattr(self._trt, "bfloat16"):
            self._types["bfloat16"] = self._trt.bfloat16

    def crops(self, spec: InputSpec) -> TensorRtValue:
        """See `Layers`; so is all that follows."""
        trt = self._trt
        crops = self._network.add_input(CROPS, trt.uint8, (-1, spec.height, spec.width, 3))
        pixels = self._network.add_cast(crops, trt.float32).get_output(0)
        turned = self._network.add_shuffle(pixels)
        turned.first_transpose = trt.Permutation([0, 3, 1, 2])
        std, mean = np.array(spec.std, np.float64), np.array(spec.mean, np.float64)
        factor, offset = 1 / (spec.scale * std), -mean / std
        x = TensorRtValue(turned.get_output(0), "float32", (3, spec.height, spec.width))
        if spec.color == "bgr":
            order = self._network.add_constant((3,), self._weights(np.array([2, 1, 0], np.int32)))
            x = replace(x, tensor=self._network.add_gather(x.tensor, order.get_output(0), 1).get_output(0))
        return self.scale(x, factor.astype(np.float32), offset.astype(np.float32))

    def cast(self, x: TensorRtValue, kind: Kind) -> TensorRtValue:
        if x.kind == kind:
            return x
        layer = self._network.add_cast(x.tensor, self._types[kind])
        return TensorRtValue(layer.get_output(0), kind, x.shape)

    def shape(self, x: TensorRtValue) -> Shape:
        return x.shape

    def conv(
        self,
        x: TensorRtValue,
        weight: Float32[np.ndarray, "outputs inputs kernel kernel"],
        bias: Float32[np.ndarray, " outputs"] | None = None,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
    ) -> TensorRtValue:
        added = self._weights(weight, x.kind), self._weights(bias, x.kind) if bias is not None else None
        layer = self._network.add_convolution_nd(x.tensor, len(weight), weight.shape[2:], *added)
        layer.stride_nd = (stride, stride)
        layer.padding_nd = (padding, padding)
        layer.num_groups = groups
        shape = self._shapes.conv(x.shape, weight, stride=stride, padding=padding, groups=groups)
        return self._done(layer, x.kind, shape)

    def scale(
        self, x: TensorRtValue, factor: Float32[np.ndarray, " channels"], offset: Float32[np.ndarray, " channels"]
    ) -> TensorRtValue:
        shift, scale = self._weights(offset, x.kind), self._weights(factor, x.kind)
        layer = self._network.add_scale(x.tensor, self._trt.ScaleMode.CHANNEL, shift, scale, None)
        return self._done(layer, x.kind, x.shape)

    def instance_norm(
        self,
        x: TensorRtValue,
        factor: Float32[np.ndarray, " normed"],
        offset: Float32[np.ndarray, " normed"],
        epsilon: float,
    ) -> TensorRtValue:
        """As a normalisation of all channels, by 0 where nothing is to change, and a sum with what is kept.

        Splitting a map and putting it together again would copy it twice. The library computes float32 inside, whatever
        the type of the map, where the network is not typed; a typed one says so by casts.
        """
        channels, normed = x.shape[0], len(factor)
        weights = [np.concatenate([values, np.zeros(channels - normed, np.float32)]) for values in (factor, offset)]
        held = all(is_held(values, x.kind) for values in weights)
        wide = x if held and not self._flavour.typed else self.cast(x, "float32")
        given = [self._constant(values.reshape(1, -1, 1, 1), wide.kind).tensor for values in weights]
        layer = self._flavour.normalization(self._network, wide.tensor, *given, axes=_POSITIONS)
        layer.epsilon = epsilon
        result = self.cast(self._done(layer, wide.kind, x.shape), x.kind)
        if normed == channels:
            return result
        kept = np.repeat(np.array([0, 1], np.float32), [normed, channels - normed])
        return self.add(result, self._binary(x, self._constant(kept.reshape(1, -1, 1, 1), x.kind), "PROD"))

    def relu(self, x: TensorRtValue) -> TensorRtValue:
        return self._activation(x, "RELU")

    def sigmoid(self, x: TensorRtValue) -> TensorRtValue:
        return self._activation(x, "SIGMOID")

    def add(self, a: TensorRtValue, b: TensorRtValue) -> TensorRtValue:
        return self._binary(a, b, "SUM")

    def gate(self, x: TensorRtValue, weight: TensorRtValue) -> TensorRtValue:
        return self._binary(x, weight, "PROD")

    def max_pool(self, x: TensorRtValue, *, padding: int, ceil: bool) -> TensorRtValue:
        layer = self._pooling(x, "MAX", 3)
        layer.padding_nd = (padding, padding)
        modes = self._trt.PaddingMode
        layer.padding_mode = modes.EXPLICIT_ROUND_UP if ceil else modes.EXPLICIT_ROUND_DOWN
        return self._done(layer, x.kind, self._shapes.max_pool(x.shape, padding=padding, ceil=ceil))

    def halve(self, x: TensorRtValue) -> TensorRtValue:
        return self._done(self._pooling(x, "AVERAGE", 2), x.kind, self._shapes.halve(x.shape))

    def mean(self, x: TensorRtValue) -> TensorRtValue:
        return self._reduced(x, "AVG")

    def maximum(self, x: TensorRtValue) -> TensorRtValue:
        return self._reduced(x, "MAX")

    def gem(self, x: TensorRtValue, p: float) -> TensorRtValue:
        x = self._binary(x, self._channels([_SMALLEST]), "MAX")
        if p == 3:  # the usual one, in two products
            powered = self._binary(self._binary(x, x, "PROD"), x, "PROD")
        else:
            powered = self._binary(x, self._channels([p]), "POW")
        return self._binary(self.mean(powered), self._channels([1 / p]), "POW")

    def attend(self, g: TensorRtValue, theta: TensorRtValue, phi: TensorRtValue) -> TensorRtValue:
        inner, height, width = g.shape
        if inner == 1:  # a product of matrices with one row is a mean of products
            wide = self.mean(self.cast(self._binary(g, phi, "PROD"), "float32"))
            return self.gate(theta, self.cast(wide, theta.kind))
        rows = [self._reshaped(value, (0, inner, height * width)) for value in (g, theta, phi)]
        share = self._constant(np.full((1, 1, 1), 1 / (height * width), np.float32), phi.kind)
        weighed = self._binary(rows[2], share, "PROD")
        flat, turned = self._trt.MatrixOperation.NONE, self._trt.MatrixOperation.TRANSPOSE
        table = self._network.add_matrix_multiply(rows[0].tensor, flat, weighed.tensor, turned)
        together = self._done(table, g.kind, g.shape)
        product = self._network.add_matrix_multiply(together.tensor, flat, rows[1].tensor, flat)
        return self._reshaped(self._done(product, g.kind, g.shape), (0, inner, height, width))

    def rows(self, x: TensorRtValue, start: int, stop: int) -> TensorRtValue:
        layer = self._network.add_slice(x.tensor, (0, 0, start, 0), (0, 0, 0, 0), (1, 1, 1, 1))
        # The batch is known only when it runs: sizes are those of x, but for the height.
        sizes = self._network.add_shape(x.tensor).get_output(0)
        for values, operation in (([1, 1, 0, 1], "PROD"), ([0, 0, stop - start, 0], "SUM")):
            dtype = np.int64 if self._flavour.typed else np.int32
            other = self._network.add_constant((4,), self._weights(np.array(values, dtype))).get_output(0)
            kind = getattr(self._trt.ElementWiseOperation, operation)
            sizes = self._network.add_elementwise(sizes, other, kind).get_output(0)
        layer.set_input(2, sizes)
        return TensorRtValue(layer.get_output(0), x.kind, self._shapes.rows(x.shape, start, stop))

    def concat(self, parts: Sequence[TensorRtValue]) -> TensorRtValue:
        layer = self._network.add_concatenation([part.tensor for part in parts])
        layer.axis = 1
        return TensorRtValue(layer.get_output(0), parts[0].kind, self._shapes.concat([part.shape for part in parts]))

    def embeddings(self, x: TensorRtValue) -> None:
        flat = self._reshaped(x, (0, x.shape[0]))
        flat.tensor.name = EMBEDDINGS
        self._network.mark_output(flat.tensor)

    def _activation(self, x: TensorRtValue, name: str) -> TensorRtValue:
        layer = self._network.add_activation(x.tensor, getattr(self._trt.ActivationType, name))
        return self._done(layer, x.kind, x.shape)

    def _binary(self, a: TensorRtValue, b: TensorRtValue, name: str) -> TensorRtValue:
        layer = self._network.add_elementwise(a.tensor, b.tensor, getattr(self._trt.ElementWiseOperation, name))
        shape = max(a.shape, b.shape, key=lambda shape: shape[0] * shape[1] * shape[2])
        return self._done(layer, a.kind, shape)

    def _pooling(self, x: TensorRtValue, name: str, size: int) -> Any:
        layer = self._network.add_pooling_nd(x.tensor, getattr(self._trt.PoolingType, name), (size, size))
        layer.stride_nd = (2, 2)
        return layer

    def _reduced(self, x: TensorRtValue, name: str) -> TensorRtValue:
        layer = self._network.add_reduce(x.tensor, getattr(self._trt.ReduceOperation, name), _POSITIONS, True)
        return self._done(layer, x.kind, self._shapes.mean(x.shape))

    def _reshaped(self, x: TensorRtValue, sizes: tuple[int, ...]) -> TensorRtValue:
        """In other axes; 0 stands for the batch, as it comes."""
        layer = self._network.add_shuffle(x.tensor)
        layer.reshape_dims = sizes
        return replace(x, tensor=layer.get_output(0))

    def _channels(self, values: Sequence[float]) -> TensorRtValue:
        """Float32 numbers, one for each channel or one for all."""
        return self._constant(np.array(values, np.float32).reshape(1, -1, 1, 1), "float32")

    def _constant(self, values: np.ndarray, kind: Kind) -> TensorRtValue:
        layer = self._network.add_constant(values.shape, self._weights(values, kind))
        return TensorRtValue(layer.get_output(0), kind, (values.size, 1, 1))

    def _done(self, layer: Any, kind: Kind, shape: Shape) -> TensorRtValue:
        """A layer's output; where the network is not typed, the layer is told to compute in that type."""
        if not self._flavour.typed:
            layer.precision = self._types[kind]
            layer.set_output_type(0, self._types[kind])
        return TensorRtValue(layer.get_output(0), kind, shape)

    def _weights(self, values: np.ndarray, kind: Kind | None = None) -> Any:
        """Numbers as the library takes them, in a type of a map or as they are."""
        match kind:
            case "float32":
                values = values.astype(np.float32)
            case "float16":
                values = _half(values)
            case "bfloat16":
                values = bfloat16_bits(values)
        values = np.ascontiguousarray(values)
        self._kept.append(values)  # the library only points at them
        if kind == "bfloat16":
            return self._trt.Weights(self._types[kind], values.ctypes.data, values.size)
        return self._trt.Weights(values)


def _half(values: np.ndarray) -> np.ndarray:
    if not is_held(values, "float16"):
        raise ModelError(
            f"Float16 does not hold the weights of a layer of {values.shape}",
            got=f"up to {np.abs(values).max():.3g} in size, with their normalisation folded in",
            expected="6e-5 to 65504",
            fix="build it in bfloat16 or float32, or with --via parser, which keeps such a layer in float32",
        )
    return values.astype(np.float16)
