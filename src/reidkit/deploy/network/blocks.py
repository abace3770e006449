"""What the descriptions of several networks are put together from. `name` is where a block's weights are called so."""

import numpy as np

from reidkit.deploy.network.layers import Kind, Layers, Value
from reidkit.deploy.network.weights import EPSILON, Weights


def conv_norm(
    layers: Layers[Value],
    weights: Weights,
    x: Value,
    conv: str,
    norm: str,
    outputs: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
) -> Value:
    """A convolution with the batch normalisation behind it folded in (in float64)."""
    weight = _kernel(layers, weights, x, conv, outputs, kernel, groups)
    factor, offset = weights.batch_norm(norm, outputs)
    if bias:
        offset = offset + weights.take(f"{conv}.bias", outputs) * factor
    folded = (weight.astype(np.float64) * factor[:, None, None, None]).astype(np.float32)
    return layers.conv(x, folded, offset, stride=stride, padding=kernel // 2, groups=groups)


def conv_instance_norm(
    layers: Layers[Value],
    weights: Weights,
    x: Value,
    conv: str,
    norm: str,
    outputs: int,
    kernel: int,
    *,
    stride: int = 1,
) -> Value:
    """A convolution and an instance normalisation of all its channels."""
    weight = _kernel(layers, weights, x, conv, outputs, kernel, 1)
    x = layers.conv(x, weight, stride=stride, padding=kernel // 2)
    return instance_norm(layers, weights, x, norm, outputs)


def conv_ibn(
    layers: Layers[Value],
    weights: Weights,
    x: Value,
    conv: str,
    norm: str,
    outputs: int,
    kernel: int,
    *,
    stride: int = 1,
) -> Value:
    """A convolution and IBN-a: its batch normalisation, of the second half, is folded in; the first half stays raw."""
    half = outputs // 2
    weight = _kernel(layers, weights, x, conv, outputs, kernel, 1)
    factor, offset = weights.batch_norm(f"{norm}.BN", outputs - half)
    factor = np.concatenate([np.ones(half, np.float32), factor])
    offset = np.concatenate([np.zeros(half, np.float32), offset])
    folded = (weight.astype(np.float64) * factor[:, None, None, None]).astype(np.float32)
    x = layers.conv(x, folded, offset, stride=stride, padding=kernel // 2)
    return instance_norm(layers, weights, x, f"{norm}.IN", half)


def instance_norm(layers: Layers[Value], weights: Weights, x: Value, name: str, channels: int) -> Value:
    """Instance normalisation of the first channels; the others stay."""
    factor, offset = weights.instance_norm(name, channels)
    return layers.instance_norm(x, factor, offset, EPSILON)


def channel_gate(
    layers: Layers[Value],
    weights: Weights,
    x: Value,
    first: str,
    second: str,
    inner: int,
    kind: Kind,
    *,
    bias: bool,
    matrix: bool = False,
) -> Value:
    """A map times what two small layers find from its means: SE, and OSNet's gate."""
    channels, _, _ = layers.shape(x)
    pooled = layers.cast(layers.mean(layers.cast(x, "float32")), kind)
    hidden = layers.relu(dense(layers, weights, pooled, first, inner, bias=bias, matrix=matrix))
    return layers.gate(x, layers.sigmoid(dense(layers, weights, hidden, second, channels, bias=bias, matrix=matrix)))


def dense(
    layers: Layers[Value], weights: Weights, x: Value, name: str, outputs: int, *, bias: bool, matrix: bool = False
) -> Value:
    """A 1 x 1 convolution; `matrix` where its weights are stored as one."""
    channels, _, _ = layers.shape(x)
    weight = weights.take(f"{name}.weight", outputs, channels, *(() if matrix else (1, 1)))
    return layers.conv(
        x, weight.reshape(outputs, channels, 1, 1), weights.take(f"{name}.bias", outputs) if bias else None
    )


def _kernel(
    layers: Layers[Value], weights: Weights, x: Value, name: str, outputs: int, kernel: int, groups: int
) -> np.ndarray:
    return weights.take(f"{name}.weight", outputs, layers.shape(x)[0] // groups, kernel, kernel)
