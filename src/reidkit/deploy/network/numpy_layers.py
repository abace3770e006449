"""The writer that computes: a known network in float64 NumPy, truth of bundles that are made without a framework."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from numpy.lib.stride_tricks import sliding_window_view

from reidkit.architecture import ModelSpec
from reidkit.deploy.network.description import write_network
from reidkit.deploy.network.layers import Kind
from reidkit.deploy.network.shapes import pooled_size
from reidkit.types import InputSpec

FeatureMap: TypeAlias = Float64[np.ndarray, "n _ _ _"]


def run_network(
    spec: ModelSpec,
    input_: InputSpec,
    tensors: Mapping[str, np.ndarray],
    crops: UInt8[np.ndarray, "n height width 3"],
    *,
    source: str = "the file",
) -> Float32[np.ndarray, "n dim"]:
    """Embeds crops with a known network; every step is float64, only the result is rounded.

    A ResNet-50 takes about a third of a second for a crop of 256 x 128. Values that leave float32 become infinite.

    Args:
        spec: of the network.
        input_: size of the crops and pre-processing.
        tensors: weights by canonical name.
        crops: RGB, 0 to 255, of the input's size.
        source: what the weights come from, for the messages.

    Raises:
        ModelError, InputError: as `write_network`.
    """
    layers = NumpyLayers(crops)
    # Weights may hold anything; whoever asks looks at what comes out.
    with np.errstate(all="ignore"):
        write_network(layers, spec, input_, tensors, source=source)
        return layers.result.astype(np.float32)


class NumpyLayers:
    """`Layers` over float64 arrays; types are not rounded to.

    Args:
        crops: that the network sees.

    Attributes:
        result: the embeddings, once the network is written; empty before.
    """

    def __init__(self, crops: UInt8[np.ndarray, "n height width 3"]) -> None:
        self._crops = crops
        self.result: Float64[np.ndarray, "n dim"] = np.empty((len(crops), 0))

    def crops(self, spec: InputSpec) -> FeatureMap:
        """See `Layers`; so is all that follows."""
        pixels = self._crops.astype(np.float64)
        if spec.color == "bgr":
            pixels = pixels[..., ::-1]
        seen = (pixels / spec.scale - np.array(spec.mean)) / np.array(spec.std)
        return np.ascontiguousarray(seen.transpose(0, 3, 1, 2))

    def cast(self, x: FeatureMap, kind: Kind) -> FeatureMap:
        """The same values."""
        return x

    def shape(self, x: FeatureMap) -> tuple[int, int, int]:
        """Without the crops."""
        return x.shape[1], x.shape[2], x.shape[3]

    def conv(
        self,
        x: FeatureMap,
        weight: Float32[np.ndarray, "outputs inputs kernel kernel"],
        bias: Float32[np.ndarray, " outputs"] | None = None,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
    ) -> FeatureMap:
        """A product of matrices for each crop in turn, since its windows side by side take many times its memory."""
        outputs, inputs, kernel, _ = weight.shape
        rows = weight.astype(np.float64).reshape(groups, outputs // groups, inputs * kernel * kernel)
        margin = (padding, padding)
        windows = sliding_window_view(np.pad(x, ((0, 0), (0, 0), margin, margin)), (kernel, kernel), axis=(2, 3))
        windows = windows[:, :, ::stride, ::stride]
        height, width = windows.shape[2:4]
        y = np.empty((len(x), outputs, height, width))
        for crop, result in zip(windows, y, strict=True):
            columns = crop.transpose(0, 3, 4, 1, 2).reshape(groups, -1, height * width)
            np.matmul(rows, columns, out=result.reshape(groups, -1, height * width))
        return y if bias is None else y + _by_channel(bias)

    def scale(
        self, x: FeatureMap, factor: Float32[np.ndarray, " channels"], offset: Float32[np.ndarray, " channels"]
    ) -> FeatureMap:
        """In float64."""
        return x * _by_channel(factor) + _by_channel(offset)

    def instance_norm(
        self,
        x: FeatureMap,
        factor: Float32[np.ndarray, " normed"],
        offset: Float32[np.ndarray, " normed"],
        epsilon: float,
    ) -> FeatureMap:
        """In float64."""
        first = x[:, : len(factor)]
        mean, variance = first.mean((2, 3), keepdims=True), first.var((2, 3), keepdims=True)
        normed = (first - mean) / np.sqrt(variance + epsilon)
        return np.concatenate([self.scale(normed, factor, offset), x[:, len(factor) :]], axis=1)

    def relu(self, x: FeatureMap) -> FeatureMap:
        """Zero at least."""
        return np.maximum(x, 0)

    def sigmoid(self, x: FeatureMap) -> FeatureMap:
        """By the hyperbolic tangent, which nothing overflows."""
        return 0.5 + 0.5 * np.tanh(x / 2)

    def add(self, a: FeatureMap, b: FeatureMap) -> FeatureMap:
        """The sum."""
        return a + b

    def gate(self, x: FeatureMap, weight: Float64[np.ndarray, "n _ 1 1"]) -> FeatureMap:
        """The product."""
        return x * weight

    def max_pool(self, x: FeatureMap, *, padding: int, ceil: bool) -> FeatureMap:
        """What lies outside the map is never the maximum."""
        height, width = (pooled_size(side, padding=padding, ceil=ceil) for side in x.shape[2:])
        behind = [
            max(0, 2 * (size - 1) + 3 - side - padding) for size, side in zip((height, width), x.shape[2:], strict=True)
        ]
        margins = ((0, 0), (0, 0), (padding, behind[0]), (padding, behind[1]))
        windows = sliding_window_view(np.pad(x, margins, constant_values=-np.inf), (3, 3), axis=(2, 3))
        return windows[:, :, ::2, ::2][:, :, :height, :width].max((4, 5))

    def halve(self, x: FeatureMap) -> FeatureMap:
        """The mean of every four."""
        n, channels, height, width = x.shape
        whole = x[:, :, : height // 2 * 2, : width // 2 * 2]
        return whole.reshape(n, channels, height // 2, 2, width // 2, 2).mean((3, 5))

    def mean(self, x: FeatureMap) -> Float64[np.ndarray, "n _ 1 1"]:
        """Over all positions."""
        return x.mean((2, 3), keepdims=True)

    def maximum(self, x: FeatureMap) -> Float64[np.ndarray, "n _ 1 1"]:
        """Over all positions."""
        return x.max((2, 3), keepdims=True)

    def gem(self, x: FeatureMap, p: float) -> Float64[np.ndarray, "n _ 1 1"]:
        """Over all positions."""
        return self.mean(np.maximum(x, 1e-6) ** p) ** (1 / p)

    def attend(self, g: FeatureMap, theta: FeatureMap, phi: FeatureMap) -> FeatureMap:
        """In the order that needs no table of all pairs of positions."""
        n, inner, height, width = g.shape
        g, theta, phi = (value.reshape(n, inner, height * width) for value in (g, theta, phi))
        y = (g @ phi.transpose(0, 2, 1) / (height * width)) @ theta
        return y.reshape(n, inner, height, width)

    def rows(self, x: FeatureMap, start: int, stop: int) -> FeatureMap:
        """A view of them."""
        return x[:, :, start:stop]

    def concat(self, parts: Sequence[FeatureMap]) -> FeatureMap:
        """By channel."""
        return np.concatenate(parts, axis=1)

    def embeddings(self, x: FeatureMap) -> None:
        """Kept as `result`."""
        self.result = x[:, :, 0, 0]


def _by_channel(values: Float32[np.ndarray, " channels"]) -> Float64[np.ndarray, "channels 1 1"]:
    return values.astype(np.float64)[:, None, None]
