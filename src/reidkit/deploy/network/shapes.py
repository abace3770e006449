"""The writer that writes nothing: values are shapes. It tells which weights a network takes before anything is made."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from reidkit.deploy.network.layers import Kind
from reidkit.errors import InputError
from reidkit.types import InputSpec

Shape: TypeAlias = tuple[int, int, int]
"""Channels, height, width."""


class ShapeLayers:
    """`Layers` over shapes.

    Attributes:
        multiply_adds: of the convolutions and matrix products so far, for one crop, each counted once.
    """

    def __init__(self) -> None:
        self.multiply_adds = 0

    def crops(self, spec: InputSpec) -> Shape:
        """See `Layers`; so is all that follows."""
        return 3, spec.height, spec.width

    def cast(self, x: Shape, kind: Kind) -> Shape:
        """The same shape."""
        return x

    def shape(self, x: Shape) -> Shape:
        """Itself."""
        return x

    def conv(
        self,
        x: Shape,
        weight: np.ndarray,
        bias: np.ndarray | None = None,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
    ) -> Shape:
        """The size that the kernel leaves."""
        kernel = weight.shape[2]
        height, width = ((side + 2 * padding - kernel) // stride + 1 for side in x[1:])
        self.multiply_adds += weight.size * height * width
        return _not_empty((len(weight), height, width))

    def scale(self, x: Shape, factor: np.ndarray, offset: np.ndarray) -> Shape:
        """The same shape."""
        return x

    def instance_norm(self, x: Shape, factor: np.ndarray, offset: np.ndarray, epsilon: float) -> Shape:
        """The same shape."""
        return x

    def relu(self, x: Shape) -> Shape:
        """The same shape."""
        return x

    def sigmoid(self, x: Shape) -> Shape:
        """The same shape."""
        return x

    def add(self, a: Shape, b: Shape) -> Shape:
        """The shape of both."""
        return a

    def gate(self, x: Shape, weight: Shape) -> Shape:
        """The map's shape."""
        return x

    def max_pool(self, x: Shape, *, padding: int, ceil: bool) -> Shape:
        """Half the size, in the rounding asked for."""
        height, width = (pooled_size(side, padding=padding, ceil=ceil) for side in x[1:])
        return _not_empty((x[0], height, width))

    def halve(self, x: Shape) -> Shape:
        """Half the size, rounded down."""
        return _not_empty((x[0], x[1] // 2, x[2] // 2))

    def mean(self, x: Shape) -> Shape:
        """One position."""
        return x[0], 1, 1

    def maximum(self, x: Shape) -> Shape:
        """One position."""
        return x[0], 1, 1

    def gem(self, x: Shape, p: float) -> Shape:
        """One position."""
        return x[0], 1, 1

    def attend(self, g: Shape, theta: Shape, phi: Shape) -> Shape:
        """The shape of each."""
        inner, height, width = g
        self.multiply_adds += 2 * inner * inner * height * width
        return g

    def rows(self, x: Shape, start: int, stop: int) -> Shape:
        """So many rows."""
        return x[0], stop - start, x[2]

    def concat(self, parts: Sequence[Shape]) -> Shape:
        """The sum of all channels."""
        return sum(part[0] for part in parts), *parts[0][1:]

    def embeddings(self, x: Shape) -> None:
        """Nothing."""


def pooled_size(side: int, *, padding: int, ceil: bool) -> int:
    """A side after 3 x 3 max-pooling of stride 2, as PyTorch counts: no window may start in the padding behind."""
    size = (side + 2 * padding - 3 + (1 if ceil else 0)) // 2 + 1
    return size - 1 if ceil and (size - 1) * 2 >= side + padding else size


def _not_empty(shape: Shape) -> Shape:
    if min(shape) < 1:
        raise InputError("The crops are too small for this network", got=f"a feature map of {shape}", fix="take larger")
    return shape
