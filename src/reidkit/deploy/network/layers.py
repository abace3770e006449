"""The protocol that every known network is described in, and that TensorRT, Caffe, ONNX and NumPy write or run.

A writer gives out values of a type of its own: feature maps of n x channels x height x width. Weights come as float32
arrays; a layer computes in the type of the value it gets, unless its line says otherwise. Types are part of the network
(`cast`), so an engine only obeys: maps may be float16 or bfloat16, while statistics, pooling, GeM's power and the neck
are float32.
"""

from collections.abc import Sequence
from typing import Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float32

from reidkit.types import InputSpec

Kind = Literal["float32", "float16", "bfloat16"]
"""Type of a value."""

Value = TypeVar("Value")


@runtime_checkable
class Layers(Protocol[Value]):
    """What a network is written with."""

    def crops(self, spec: InputSpec) -> Value:
        """The input, uint8 n x height x width x 3 RGB, as what the network sees.

        Float32 n x 3 x height x width in the spec's channel order: `(pixel / scale - mean) / std`.
        """
        ...

    def cast(self, x: Value, kind: Kind) -> Value:
        """The same values in another type; `x` itself where it has that type."""
        ...

    def shape(self, x: Value) -> tuple[int, int, int]:
        """Channels, height and width of a map."""
        ...

    def conv(
        self,
        x: Value,
        weight: Float32[np.ndarray, "outputs inputs kernel kernel"],
        bias: Float32[np.ndarray, " outputs"] | None = None,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
    ) -> Value:
        """A convolution; `inputs` counts those of one group."""
        ...

    def scale(
        self, x: Value, factor: Float32[np.ndarray, " channels"], offset: Float32[np.ndarray, " channels"]
    ) -> Value:
        """`x * factor + offset`, by channel."""
        ...

    def instance_norm(
        self, x: Value, factor: Float32[np.ndarray, " normed"], offset: Float32[np.ndarray, " normed"], epsilon: float
    ) -> Value:
        """Normalises each crop's first `normed` channels over all positions, then scales them; others stay.

        `(x - mean) / sqrt(variance + epsilon) * factor + offset` with the variance over n, not n - 1. It is computed in
        float32; the result has the type of `x`.
        """
        ...

    def relu(self, x: Value) -> Value:
        """`max(x, 0)`."""
        ...

    def sigmoid(self, x: Value) -> Value:
        """`1 / (1 + exp(-x))`."""
        ...

    def add(self, a: Value, b: Value) -> Value:
        """The sum of two values of one shape and type."""
        ...

    def gate(self, x: Value, weight: Value) -> Value:
        """A map times one number a channel: n x channels x 1 x 1, of the same type."""
        ...

    def max_pool(self, x: Value, *, padding: int, ceil: bool) -> Value:
        """The maximum over 3 x 3 with stride 2; `ceil` rounds the size up, and then the last window may be cut."""
        ...

    def halve(self, x: Value) -> Value:
        """The mean over 2 x 2 with stride 2; an odd last row or column is left out."""
        ...

    def mean(self, x: Value) -> Value:
        """The mean over all positions: n x channels x 1 x 1. `x` is float32."""
        ...

    def maximum(self, x: Value) -> Value:
        """The maximum over all positions: n x channels x 1 x 1. `x` is float32."""
        ...

    def gem(self, x: Value, p: float) -> Value:
        """The generalised mean over all positions: `mean(max(x, 1e-6) ** p) ** (1 / p)`. `x` is float32."""
        ...

    def attend(self, g: Value, theta: Value, phi: Value) -> Value:
        """Position attention without a softmax: at position i, the mean over all j of `(theta_i . phi_j) g_j`.

        All three are n x inner x height x width, and so is the result.
        """
        ...

    def rows(self, x: Value, start: int, stop: int) -> Value:
        """Rows `start` to `stop` (not included) of a map."""
        ...

    def concat(self, parts: Sequence[Value]) -> Value:
        """Values side by side, by channel."""
        ...

    def embeddings(self, x: Value) -> None:
        """The network's output: float32 n x channels x 1 x 1, given out as n x channels."""
        ...
