"""Computes a network of TensorRT's, layer by layer in float64 NumPy, from what the library itself says of each layer.

It shares no code with the writer: what was written is proven without a card. With `rounding`, every tensor is rounded
to the type that the library gives it, as a card does.
"""

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from numpy_layers import convolve, max_pool_3x3

Array = np.ndarray[Any, Any]


def run_network(trt: Any, network: Any, kept: list[Array], crops: Array, *, rounding: bool = False) -> Array:
    """The output of a network for some crops.

    Args:
        trt: the library.
        network: of convolutions in groups and so on, as known networks need them.
        kept: the writer's weights in the order of their layers, for those that the library does not give back.
        crops: the input.
        rounding: to each tensor's type.
    """
    types = {trt.float16: np.float16, trt.bfloat16: ml_dtypes.bfloat16, trt.float32: np.float32}
    (only,) = [network.get_input(index) for index in range(network.num_inputs)]
    (result,) = [network.get_output(index) for index in range(network.num_outputs)]
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {layer.get_output(0).name: layer for layer in layers}
    values: dict[str, Array] = {only.name: crops.astype(np.float64)}
    arrays = iter(kept)

    def value(tensor: Any) -> Array:
        if tensor.name in values:
            return values[tensor.name]
        layer = makers[tensor.name]
        given = [layer.get_input(index) for index in range(layer.num_inputs)]
        inputs = [value(one) for one in given if one is not None]
        found = _compute(trt, layer.type.name, downcast(trt, layer), inputs, arrays)
        assert all(said in (size, -1) for size, said in zip(found.shape, tensor.shape, strict=True))
        if rounding and tensor.dtype in types:
            found = found.astype(types[tensor.dtype]).astype(np.float64)
        values[tensor.name] = found
        return found

    for layer in layers:  # in the order that the writer made them, but for what one of them waits for
        value(layer.get_output(0))
    assert next(arrays, None) is None
    return values[result.name]


def _compute(  # noqa: PLR0912 (one for each kind of layer)
    trt: Any, kind: str, layer: Any, inputs: list[Array], kept: Iterator[Array]
) -> Array:
    x = inputs[0] if inputs else np.empty(0)
    match kind:
        case "CAST":
            return x
        case "CONSTANT":
            return _weights(layer.weights, kept).reshape(tuple(layer.shape))
        case "CONVOLUTION":
            return _convolution(layer, x, kept)
        case "SCALE":
            assert (layer.mode, layer.power.size) == (trt.ScaleMode.CHANNEL, 0)
            shift, scale = _weights(layer.shift, kept), _weights(layer.scale, kept)
            return x * scale[:, None, None] + shift[:, None, None]
        case "ACTIVATION":
            functions = {"RELU": lambda x: np.maximum(x, 0), "SIGMOID": lambda x: 1 / (1 + np.exp(-x))}
            return functions[layer.type.name](x)
        case "POOLING":
            return _pooling(trt, layer, x)
        case "REDUCE":
            assert layer.keep_dims
            axes = tuple(axis for axis in range(8) if layer.axes >> axis & 1)
            return {"AVG": np.mean, "MAX": np.max}[layer.op.name](x, axis=axes, keepdims=True)
        case "ELEMENTWISE":
            operations = {"SUM": np.add, "PROD": np.multiply, "POW": np.power}
            return ({"MAX": np.maximum} | operations)[layer.op.name](*inputs)
        case "NORMALIZATION":
            axes = tuple(axis for axis in range(8) if layer.axes >> axis & 1)
            normed = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + layer.epsilon)
            return normed * inputs[1] + inputs[2]
        case "SHUFFLE":
            return _shuffle(layer, x)
        case "GATHER":
            return np.take(x, inputs[1].astype(int), axis=layer.axis)
        case "SHAPE":
            return np.array(x.shape, np.float64)
        case "SLICE":
            start, sizes, step = tuple(layer.start), inputs[1], tuple(layer.stride)
            return x[tuple(slice(a, a + int(n) * s, s) for a, n, s in zip(start, sizes, step, strict=True))]
        case "CONCATENATION":
            return np.concatenate(inputs, axis=layer.axis)
        case "MATRIX_MULTIPLY":
            turned = trt.MatrixOperation.TRANSPOSE
            a, b = (
                value.swapaxes(-1, -2) if operation == turned else value
                for value, operation in zip(inputs, (layer.op0, layer.op1), strict=True)
            )
            return a @ b
    raise AssertionError(f"{kind} is not read here")


def _convolution(layer: Any, x: Array, kept: Iterator[Array]) -> Array:
    assert tuple(layer.dilation_nd) == (1, 1)
    kernel, bias = _weights(layer.kernel, kept), None
    if layer.bias.size:
        bias = _weights(layer.bias, kept)
    weight = kernel.reshape(layer.num_output_maps, -1, *layer.kernel_size_nd)
    assert weight.shape[1] * layer.num_groups == x.shape[1]
    (stride,), (padding,) = set(layer.stride_nd), set(layer.padding_nd)
    return convolve(x, weight, bias, stride=stride, padding=padding)


def _pooling(trt: Any, layer: Any, x: Array) -> Array:
    name, window = layer.type.name, tuple(layer.window_size_nd)
    stride, (padding,) = tuple(layer.stride_nd), set(layer.padding_nd)
    if name == "MAX":
        assert (window, stride) == ((3, 3), (2, 2))
        return max_pool_3x3(x, padding=padding, ceil_mode=layer.padding_mode == trt.PaddingMode.EXPLICIT_ROUND_UP)
    assert (name, stride, padding) == ("AVERAGE", window, 0)
    assert layer.padding_mode == trt.PaddingMode.EXPLICIT_ROUND_DOWN
    n, c, h, w = x.shape
    rows, columns = h // window[0], w // window[1]
    cut = x[:, :, : rows * window[0], : columns * window[1]]
    return cut.reshape(n, c, rows, window[0], columns, window[1]).mean((3, 5))


def _shuffle(layer: Any, x: Array) -> Array:
    order = tuple(layer.first_transpose)[: x.ndim]
    assert tuple(layer.second_transpose) == tuple(range(8))
    x = x.transpose(order)
    if layer.reshape_dims is None:
        return x
    assert layer.zero_is_placeholder
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(layer.reshape_dims)])


def _weights(given: Any, kept: Iterator[Array]) -> Array:
    """Numbers of a layer; those of a type that NumPy lacks are the writer's next, for the library gives none back."""
    bits = next(kept)
    if isinstance(given, np.ndarray):
        np.testing.assert_array_equal(given, bits.reshape(-1))
        return given.astype(np.float64)
    assert given.size == bits.size
    return bits.reshape(-1).view(ml_dtypes.bfloat16).astype(np.float64)


def downcast(trt: Any, layer: Any) -> Any:
    """A layer with the attributes of its kind."""
    names = {"ELEMENTWISE": "ElementWise"}
    name = names.get(layer.type.name, "".join(word.capitalize() for word in layer.type.name.split("_")))
    kind = getattr(trt, f"I{name}Layer")
    if type(layer) is not kind:
        layer.__class__ = kind
    return layer
