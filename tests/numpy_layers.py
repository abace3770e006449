"""The layers of convolutional networks in float64 NumPy, as their formulas read: what the models are held against.

A layer with parameters takes the checkpoint and the name that the parameters stand under there.
"""

from collections.abc import Mapping
from math import ceil
from typing import Any, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Tensors: TypeAlias = Mapping[str, NDArray[Any]]

EPS = 1e-5


def value(tensors: Tensors, name: str) -> Array:
    return tensors[name].astype(np.float64, copy=False)


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def leaky_relu(x: Array, slope: float) -> Array:
    return np.where(x > 0, x, slope * x)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def convolve(x: Array, weight: Array, bias: Array | None = None, *, stride: int = 1, padding: int = 0) -> Array:
    """Cross-correlates x (n, c, h, w) with the weight (o, c / groups, k, k): the shapes say how many groups."""
    out, per_group, size, _ = weight.shape
    n, channels = x.shape[:2]
    groups = channels // per_group
    margin = (padding, padding)
    windows = sliding_window_view(np.pad(x, ((0, 0), (0, 0), margin, margin)), (size, size), axis=(2, 3))
    windows = windows[:, :, ::stride, ::stride]
    h, w = windows.shape[2:4]
    columns = windows.transpose(0, 1, 4, 5, 2, 3).reshape(n, groups, per_group * size * size, h * w)
    y = (weight.reshape(groups, out // groups, -1) @ columns).reshape(n, out, h, w)
    return y if bias is None else y + bias[:, None, None]


def conv(tensors: Tensors, name: str, x: Array, *, stride: int = 1) -> Array:
    """A convolution that keeps the size apart from its stride, with a bias where the file has one."""
    weight = value(tensors, f"{name}.weight")
    bias = value(tensors, f"{name}.bias") if f"{name}.bias" in tensors else None
    return convolve(x, weight, bias, stride=stride, padding=weight.shape[-1] // 2)


def linear(tensors: Tensors, name: str, x: Array) -> Array:
    y = x @ value(tensors, f"{name}.weight").T
    return y + value(tensors, f"{name}.bias") if f"{name}.bias" in tensors else y


def _affine(tensors: Tensors, name: str, x: Array) -> Array:
    shape = (-1,) + (1,) * (x.ndim - 2)
    return x * value(tensors, f"{name}.weight").reshape(shape) + value(tensors, f"{name}.bias").reshape(shape)


def batch_norm(tensors: Tensors, name: str, x: Array) -> Array:
    """(x - running mean) / sqrt(running variance + eps) * weight + bias, for (n, c) and (n, c, h, w)."""
    shape = (-1,) + (1,) * (x.ndim - 2)
    mean = value(tensors, f"{name}.running_mean").reshape(shape)
    variance = value(tensors, f"{name}.running_var").reshape(shape)
    return _affine(tensors, name, (x - mean) / np.sqrt(variance + EPS))


def instance_norm(tensors: Tensors, name: str, x: Array) -> Array:
    """Each image's each channel to mean 0 and (biased) variance 1, then weight and bias."""
    mean, variance = x.mean((2, 3), keepdims=True), x.var((2, 3), keepdims=True)
    return _affine(tensors, name, (x - mean) / np.sqrt(variance + EPS))


def ibn_a(tensors: Tensors, name: str, x: Array) -> Array:
    """The first half of the channels through instance norm, the rest through batch norm."""
    half = x.shape[1] // 2
    normed = instance_norm(tensors, f"{name}.IN", x[:, :half]), batch_norm(tensors, f"{name}.BN", x[:, half:])
    return np.concatenate(normed, axis=1)


def squeeze_excite(tensors: Tensors, name: str, x: Array) -> Array:
    hidden = relu(linear(tensors, f"{name}.fc.0", x.mean((2, 3))))
    return x * sigmoid(linear(tensors, f"{name}.fc.2", hidden))[:, :, None, None]


def non_local_block(tensors: Tensors, name: str, x: Array) -> Array:
    """z = W(y) + x with y = (theta . phi / N) g over the N places; no softmax."""
    n, _, h, w = x.shape
    theta, phi, g = (conv(tensors, f"{name}.{part}", x).reshape(n, -1, h * w) for part in ("theta", "phi", "g"))
    f = np.einsum("nci,ncj->nij", theta, phi) / (h * w)
    y = np.einsum("nij,ncj->nci", f, g).reshape(n, -1, h, w)
    return batch_norm(tensors, f"{name}.W.1", conv(tensors, f"{name}.W.0", y)) + x


def _pooled_size(size: int, padding: int, *, ceil_mode: bool) -> int:
    steps = (size + 2 * padding - 3) / 2
    return (ceil(steps) if ceil_mode else int(steps)) + 1


def max_pool_3x3(x: Array, *, padding: int, ceil_mode: bool) -> Array:
    """The maximum of 3x3 windows, 2 apart; padding and what a rounded-up last window lacks are never the maximum."""
    h, w = (_pooled_size(size, padding, ceil_mode=ceil_mode) for size in x.shape[2:])
    margins = [
        (padding, max(2 * (out - 1) + 3 - size - padding, 0)) for out, size in zip((h, w), x.shape[2:], strict=True)
    ]
    padded = np.pad(x, ((0, 0), (0, 0), *margins), constant_values=-np.inf)
    return sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2][:, :, :h, :w].max((4, 5))


def halve(x: Array) -> Array:
    """The average of 2x2 windows, 2 apart; an odd last row or column is left out."""
    n, c, h, w = x.shape
    return x[:, :, : h // 2 * 2, : w // 2 * 2].reshape(n, c, h // 2, 2, w // 2, 2).mean((3, 5))


def generalized_mean(x: Array, p: float) -> Array:
    return (np.maximum(x, 1e-6) ** p).mean((2, 3)) ** (1 / p)
