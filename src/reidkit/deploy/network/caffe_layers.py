"""Writes a known network as Caffe layers, of those that BVLC Caffe 1.0 and OpenCV's DNN module compute alike.

What the two do differently is put together from what they do alike:

- `MVN` adds its epsilon to the standard deviation in Caffe and to the variance in OpenCV 4.14: here it only takes the
  mean away, and the rest of an instance normalisation is other layers.
- Pooling rounds sizes up. The field `round_mode` came after Caffe 1.0, and OpenCV does not know it: where a network
  rounds down, two poolings or a convolution give the same numbers.
- A padded 3 x 3 convolution of each channel alone is wrong in OpenCV 4.14 over a single row or column: there, kernels
  lose what sees nothing but padding.
- `Scale` multiplies by a second blob whose axes have to be the first's, so one number a channel is flattened before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import Message

from reidkit.deploy.network.caffe_format import caffemodel, layer, prototxt
from reidkit.deploy.network.layers import Kind
from reidkit.deploy.network.shapes import Shape, ShapeLayers
from reidkit.errors import ModelError
from reidkit.types import InputSpec

DATA, EMBEDDING = "data", "embedding"
"""Blobs: the crops, float 1 x 3 x height x width, RGB, 0 to 255; and what the network gives for them, 1 x dim."""

_SMALLEST = 1e-6  # that GeM lets a value be


@dataclass(frozen=True, slots=True)
class CaffeBlob:
    """A feature map of the network.

    Attributes:
        name: of the blob, which is that of the layer that writes it.
        shape: channels, height and width.
    """

    name: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class _Cut:
    """A `Slice` layer by rows, which grows with every part that is asked for.

    Attributes:
        layer: its message.
        parts: blobs by the row that they start at.
        taken: first row and end of the parts that were given out, none within another.
    """

    layer: Any
    parts: dict[int, str]
    taken: list[tuple[int, int]]


class CaffeLayers:
    """`Layers` over Caffe's, float32 only."""

    def __init__(self) -> None:
        self._layers: list[Message] = []
        self._blobs: dict[str, list[np.ndarray]] = {}
        self._cuts: dict[str, _Cut] = {}
        self._counts: dict[str, int] = {}
        self._shapes = ShapeLayers()

    def prototxt(self, name: str) -> str:
        """The network that was written, as text."""
        return prototxt(name, self._layers)

    def caffemodel(self, name: str) -> bytes:
        """The network that was written, with its weights."""
        return caffemodel(name, self._layers, self._blobs)

    def crops(self, spec: InputSpec) -> CaffeBlob:
        """See `Layers`; so is all that follows. The blob is float and n x 3 x height x width: Caffe has no other."""
        shape = self._shapes.crops(spec)
        self._layers.append(layer(DATA, "Input", [], [DATA], input_param={"shape": [{"dim": [1, *shape]}]}))
        # One 1 x 1 convolution turns the channels and normalises them.
        std = np.array(spec.std)
        order = (2, 1, 0) if spec.color == "bgr" else (0, 1, 2)
        weight = np.zeros((3, 3, 1, 1))
        weight[(0, 1, 2), order, 0, 0] = 1 / (spec.scale * std)
        bias = -np.array(spec.mean) / std
        return self.conv(CaffeBlob(DATA, shape), weight.astype(np.float32), bias.astype(np.float32))

    def cast(self, x: CaffeBlob, kind: Kind) -> CaffeBlob:
        """The value itself."""
        if kind != "float32":
            raise ModelError("Caffe computes in float32 alone", got=kind, fix="write the Caffe files in float32")
        return x

    def shape(self, x: CaffeBlob) -> tuple[int, int, int]:
        """Known as it is written."""
        return x.shape

    def conv(
        self,
        x: CaffeBlob,
        weight: np.ndarray,
        bias: np.ndarray | None = None,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
    ) -> CaffeBlob:
        """`Convolution`."""
        shape = self._shapes.conv(x.shape, weight, bias, stride=stride, padding=padding, groups=groups)
        weight, pads = _trimmed(weight, x.shape, padding)
        settings = {
            "num_output": len(weight),
            "bias_term": bias is not None,
            "kernel_size": _once(weight.shape[2:]),
            "stride": [stride],
            "pad": _once(pads),
            "group": groups,
        }
        arrays = [weight] if bias is None else [weight, bias]
        return self._add("Convolution", [x], shape, arrays, convolution_param=settings)

    def scale(self, x: CaffeBlob, factor: np.ndarray, offset: np.ndarray) -> CaffeBlob:
        """`Scale` with weights."""
        return self._add("Scale", [x], x.shape, [factor, offset], scale_param={"axis": 1, "bias_term": True})

    def instance_norm(self, x: CaffeBlob, factor: np.ndarray, offset: np.ndarray, epsilon: float) -> CaffeBlob:
        """The mean by `MVN`; the variance as the mean of squares; its inverse root by `Power`."""
        rest = None
        if len(factor) < x.shape[0]:
            x, rest = self._split(x, len(factor))
        settings = {"normalize_variance": False, "across_channels": False}
        centred = self._add("MVN", [x], x.shape, mvn_param=settings)
        variance = self.mean(self._product(centred, centred))
        inverse = self._power(variance, -0.5, shift=epsilon)
        y = self.scale(self.gate(centred, inverse), factor, offset)
        return y if rest is None else self.concat([y, rest])

    def relu(self, x: CaffeBlob) -> CaffeBlob:
        """`ReLU`, never in place: others may read the blob."""
        return self._add("ReLU", [x], x.shape)

    def sigmoid(self, x: CaffeBlob) -> CaffeBlob:
        """`Sigmoid`."""
        return self._add("Sigmoid", [x], x.shape)

    def add(self, a: CaffeBlob, b: CaffeBlob) -> CaffeBlob:
        """`Eltwise`."""
        return self._add("Eltwise", [a, b], a.shape, eltwise_param={"operation": "SUM"})

    def gate(self, x: CaffeBlob, weight: CaffeBlob) -> CaffeBlob:
        """`Scale` by what `Flatten` gives."""
        return self._add("Scale", [x, self._flat(weight)], x.shape, scale_param={"axis": 0})

    def max_pool(self, x: CaffeBlob, *, padding: int, ceil: bool) -> CaffeBlob:
        """`Pooling`, or two of them where the size is rounded down."""
        channels, height, width = x.shape
        shape = self._shapes.max_pool(x.shape, padding=padding, ceil=ceil)
        if ceil:
            return self._pool(x, shape, "MAX", kernel=3, stride=2, pad=padding)
        if padding != 1 or min(height, width) < 2:
            raise ModelError(
                "Caffe's pooling rounds sizes up",
                got=f"a max-pooling that rounds down, of {height} x {width} positions with padding {padding}",
                expected="padding 1, and at least two positions each way",
            )
        # The maxima of pairs, then of pairs of pairs: of positions 2i - 1 to 2i + 1. Rounded up, the latter are as many
        # as windows of 3 rounded down, whatever the size.
        pairs = self._pool(x, (channels, height - 1, width - 1), "MAX", kernel=2, stride=1, pad=0)
        return self._pool(pairs, shape, "MAX", kernel=2, stride=2, pad=1)

    def halve(self, x: CaffeBlob) -> CaffeBlob:
        """`Pooling`; a convolution of each channel alone where an odd row or column is left out."""
        channels, height, width = x.shape
        if height % 2 == 0 and width % 2 == 0:
            return self._pool(x, self._shapes.halve(x.shape), "AVE", kernel=2, stride=2, pad=0)
        return self.conv(x, np.full((channels, 1, 2, 2), 0.25, np.float32), stride=2, groups=channels)

    def mean(self, x: CaffeBlob) -> CaffeBlob:
        """`Pooling` over the whole map."""
        return self._pool_all(x, "AVE")

    def maximum(self, x: CaffeBlob) -> CaffeBlob:
        """`Pooling` over the whole map."""
        return self._pool_all(x, "MAX")

    def gem(self, x: CaffeBlob, p: float) -> CaffeBlob:
        """`ReLU` between two `Power` layers is the clamp; `Power` again behind the mean."""
        above = self.relu(self._power(x, 1.0, shift=-_SMALLEST))
        return self._power(self.mean(self._power(above, p, shift=_SMALLEST)), 1 / p)

    def attend(self, g: CaffeBlob, theta: CaffeBlob, phi: CaffeBlob) -> CaffeBlob:
        """With one inner channel, theta times the mean of the product of phi and g."""
        inner = g.shape[0]
        if inner != 1:
            raise ModelError(
                "Caffe has no product of two feature maps, which non-local blocks need",
                got=f"non-local blocks of inner width {inner}",
                expected="one inner channel (non_local one), as most of fast-reid's weights have, or no such blocks",
                fix="run the bundle itself, or its model.onnx",
            )
        return self.gate(theta, self.mean(self._product(phi, g)))

    def rows(self, x: CaffeBlob, start: int, stop: int) -> CaffeBlob:
        """One `Slice` for all parts of a map."""
        shape = self._shapes.rows(x.shape, start, stop)
        if shape == x.shape:
            return x
        cut = self._cuts.get(x.name)
        if cut is None or any(start < end and begin < stop for begin, end in cut.taken):
            added = self._add("Slice", [x], x.shape, slice_param={"axis": 2})
            cut = self._cuts[x.name] = _Cut(self._layers[-1], {0: added.name}, [])
        cut.taken.append((start, stop))
        for border in (start, stop):
            if 0 < border < x.shape[1] and border not in cut.parts:
                cut.parts[border] = f"{cut.layer.name}_{border}"
        borders = sorted(cut.parts)
        cut.layer.slice_param.slice_point[:] = borders[1:]
        cut.layer.top[:] = [cut.parts[border] for border in borders]
        return CaffeBlob(cut.parts[start], shape)

    def concat(self, parts: Sequence[CaffeBlob]) -> CaffeBlob:
        """`Concat`."""
        shape = self._shapes.concat([part.shape for part in parts])
        return self._add("Concat", list(parts), shape, concat_param={"axis": 1})

    def embeddings(self, x: CaffeBlob) -> None:
        """`Flatten`, under the output's name."""
        self._layers.append(layer(EMBEDDING, "Flatten", [x.name], [EMBEDDING], flatten_param={"axis": 1}))

    def _split(self, x: CaffeBlob, first: int) -> tuple[CaffeBlob, CaffeBlob]:
        channels, height, width = x.shape
        name = self._name("Slice")
        tops = [f"{name}_0", f"{name}_{first}"]
        self._layers.append(layer(name, "Slice", [x.name], tops, slice_param={"axis": 1, "slice_point": [first]}))
        return CaffeBlob(tops[0], (first, height, width)), CaffeBlob(tops[1], (channels - first, height, width))

    def _product(self, a: CaffeBlob, b: CaffeBlob) -> CaffeBlob:
        return self._add("Eltwise", [a, b], a.shape, eltwise_param={"operation": "PROD"})

    def _power(self, x: CaffeBlob, power: float, *, shift: float = 0.0) -> CaffeBlob:
        """`(x + shift) ** power`."""
        return self._add("Power", [x], x.shape, power_param={"power": power, "scale": 1.0, "shift": shift})

    def _flat(self, x: CaffeBlob) -> CaffeBlob:
        return self._add("Flatten", [x], x.shape, flatten_param={"axis": 1})

    def _pool(self, x: CaffeBlob, shape: Shape, how: str, *, kernel: int, stride: int, pad: int) -> CaffeBlob:
        settings = {"pool": how, "kernel_size": kernel, "stride": stride, "pad": pad}
        return self._add("Pooling", [x], shape, pooling_param=settings)

    def _pool_all(self, x: CaffeBlob, how: str) -> CaffeBlob:
        settings = {"pool": how, "global_pooling": True}
        return self._add("Pooling", [x], self._shapes.mean(x.shape), pooling_param=settings)

    def _add(
        self,
        kind: str,
        bottoms: Sequence[CaffeBlob],
        shape: Shape,
        arrays: Sequence[np.ndarray] = (),
        **parameters: dict[str, Any],
    ) -> CaffeBlob:
        """Adds a layer of one output, which has its name."""
        name = self._name(kind)
        self._layers.append(layer(name, kind, [bottom.name for bottom in bottoms], [name], **parameters))
        if arrays:
            self._blobs[name] = list(arrays)
        return CaffeBlob(name, shape)

    def _name(self, kind: str) -> str:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return f"{kind.lower()}{self._counts[kind]}"


def _trimmed(weight: np.ndarray, shape: Shape, padding: int) -> tuple[np.ndarray, list[int]]:
    """Kernels without what sees nothing but padding: all rows but one over a map of one row, and so columns; pads."""
    pads = [padding, padding]
    for axis in (1, 2):
        if shape[axis] == 1 and weight.shape[axis + 1] == 2 * padding + 1:
            weight = np.take(weight, [padding], axis + 1)
            pads[axis - 1] = 0
    return weight, pads


def _once(sides: Sequence[int]) -> list[int]:
    """Height and width, or one number where they are the same."""
    return list(sides) if sides[0] != sides[1] else [sides[0]]
