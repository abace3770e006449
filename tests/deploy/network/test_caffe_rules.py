"""The files as BVLC Caffe 1.0 would read and run them, by its own rules in float64, where OpenCV is more forgiving.

Messages are taken apart by their field numbers in `caffe.proto`, and layers follow Caffe's own arithmetic: no blob is
written twice, sizes of poolings are rounded up, `MVN` adds its epsilon to the deviation, `Scale` takes a blob whose
axes are the first's.
"""

import struct
from collections import defaultdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reidkit.architecture import HeadSpec, ModelSpec, OSNetSpec, ResNetSpec
from reidkit.deploy.network.caffe_layers import CaffeLayers
from reidkit.deploy.network.description import write_network
from reidkit.models.model import DeployedModel, build_model
from reidkit.types import InputSpec

PARAMETERS = {
    "Input": (143, {1}),
    "Convolution": (106, {1, 2, 3, 4, 5, 6}),
    "Scale": (142, {1, 4}),
    "MVN": (120, {1, 2}),
    "Eltwise": (110, {1}),
    "Power": (122, {1, 2, 3}),
    "Pooling": (121, {1, 2, 3, 4, 12}),
    "Slice": (126, {2, 3}),
    "Concat": (104, {2}),
    "Flatten": (135, {1}),
    "ReLU": (123, set()),
    "Sigmoid": (124, set()),
}
"""Number of each kind's own message in `LayerParameter`, and those of the fields that are known here."""


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def fields(data):
    """A message as lists of values by field number, in protobuf's wire format."""
    found, at = defaultdict(list), 0
    while at < len(data):
        key, at = varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = varint(data, at)
        elif wire == 2:
            size, at = varint(data, at)
            value, at = data[at : at + size], at + size
        else:
            assert wire == 5
            value, at = struct.unpack_from("<f", data, at)[0], at + 4
        found[number].append(value)
    return found


def packed(data):
    values, at = [], 0
    while at < len(data):
        value, at = varint(data, at)
        values.append(value)
    return values


def array(blob):
    shape = packed(fields(fields(blob)[7][0])[1][0])
    return torch.from_numpy(np.frombuffer(fields(blob)[5][0], "<f4").reshape(shape).astype(np.float64))


class Caffe:
    """Runs a network layer by layer."""

    def __init__(self, caffemodel):
        self.layers = [fields(data) for data in fields(caffemodel)[100]]

    def run(self, data):
        blobs, read = {}, set()
        for layer in self.layers:
            kind = layer[2][0].decode()
            bottoms, tops = ([name.decode() for name in layer[number]] for number in (3, 4))
            number, known = PARAMETERS[kind]
            parameters = fields(layer[number][0]) if layer[number] else {}
            assert set(parameters) <= known
            assert not blobs.keys() & set(tops), "a blob that is written twice"
            if kind == "Input":
                results = [data]
                assert packed(fields(fields(layer[143][0])[1][0])[1][0]) == [1, *data.shape[1:]]
            else:
                results = getattr(self, kind)(
                    *(blobs[name] for name in bottoms),
                    *(array(blob) for blob in layer[7]),
                    **{f"f{number}": values for number, values in parameters.items()},
                )
            results = results if isinstance(results, list) else [results]
            blobs.update(zip(tops, results, strict=True))
            read.update(bottoms)
        assert blobs.keys() - read == {"embedding"}, "blobs that nobody reads are outputs of the network"
        return blobs["embedding"]

    def Convolution(self, x, weight, bias=None, *, f1, f2, f3, f4, f5, f6):  # noqa: N802
        assert f2 == [int(bias is not None)]
        kernel, pad = (values if len(values) == 2 else values * 2 for values in (f4, f3))
        assert list(weight.shape) == [f1[0], x.shape[1] // f5[0], *kernel]
        return F.conv2d(x, weight, bias, f6[0], pad, groups=f5[0])

    def Scale(self, x, factor, offset=None, *, f1, f4=(0,)):  # noqa: N802
        axis = f1[0]
        assert x.shape[axis : axis + factor.ndim] == factor.shape
        assert f4[0] == (offset is not None)
        open_up = (*[1] * axis, *factor.shape, *[1] * (x.ndim - axis - factor.ndim))
        return x * factor.reshape(open_up) + (0 if offset is None else offset.reshape(open_up))

    def MVN(self, x, *, f1=(1,), f2=(0,)):  # noqa: N802
        assert f2[0] == 0
        x = x - x.mean((2, 3), keepdim=True)
        return x / ((x**2).mean((2, 3), keepdim=True).sqrt() + 1e-9) if f1[0] else x

    def Eltwise(self, a, b, *, f1):  # noqa: N802
        assert a.shape == b.shape
        return {0: a * b, 1: a + b}[f1[0]]

    def Power(self, x, *, f1, f2, f3):  # noqa: N802
        return (f3[0] + f2[0] * x) ** f1[0]

    def Pooling(self, x, *, f1, f2=None, f3=(1,), f4=(0,), f12=(0,)):  # noqa: N802
        if f12[0]:
            return x.amax((2, 3), keepdim=True) if f1[0] == 0 else x.mean((2, 3), keepdim=True)
        (kernel,), (stride,), (pad,) = f2, f3, f4
        starts = []
        for side in x.shape[2:]:
            count = -(-(side + 2 * pad - kernel) // stride) + 1
            if pad and (count - 1) * stride >= side + pad:
                count -= 1
            starts.append([place * stride - pad for place in range(count)])
        rows = [[self.window(x, top, left, kernel, pad, f1[0]) for left in starts[1]] for top in starts[0]]
        return torch.stack([torch.stack(row, -1) for row in rows], -2)

    @staticmethod
    def window(x, top, left, kernel, pad, how):
        height, width = x.shape[2:]
        part = x[:, :, max(top, 0) : min(top + kernel, height), max(left, 0) : min(left + kernel, width)]
        if how == 0:
            return part.amax((2, 3))
        size = (min(top + kernel, height + pad) - top) * (min(left + kernel, width + pad) - left)
        return part.sum((2, 3)) / size

    def Slice(self, x, *, f2, f3):  # noqa: N802
        points = packed(f2[0]) if isinstance(f2[0], bytes) else f2
        return list(torch.tensor_split(x, points, f3[0]))

    def Concat(self, *parts, f2):  # noqa: N802
        return torch.cat(parts, f2[0])

    def Flatten(self, x, *, f1):  # noqa: N802
        return x.flatten(f1[0])

    def ReLU(self, x):  # noqa: N802
        return x.relu()

    def Sigmoid(self, x):  # noqa: N802
        return x.sigmoid()


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec(ResNetSpec(ibn="a", se=True), HeadSpec(gem_learned=True, embedding_dim=8)),
        ModelSpec(ResNetSpec(ibn="b", max_pool="pad"), HeadSpec(pooling="average+max")),
        ModelSpec(OSNetSpec(width=0.25, variant="ibn"), HeadSpec(pooling="average")),
        ModelSpec(OSNetSpec(width=0.25, variant="ain"), HeadSpec(pooling="average")),
    ],
)
def test_by_caffes_own_rules_the_embedding_is_pytorchs(spec):
    size = InputSpec(46, 33, color="bgr")
    torch.manual_seed(0)
    model = build_model(spec).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
    layers = CaffeLayers()
    write_network(layers, spec, size, {name: tensor.numpy() for name, tensor in model.state_dict().items()})
    crops = torch.randint(0, 256, (2, 46, 33, 3), dtype=torch.uint8)
    with torch.inference_mode():
        wanted = DeployedModel(model, size)(crops).double()
        got = Caffe(layers.caffemodel("net")).run(crops.permute(0, 3, 1, 2).double())
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_mgn_has_one_output_too():
    spec = ModelSpec(ResNetSpec(ibn="none"), HeadSpec(embedding_dim=4, neck=False), "mgn")
    size = InputSpec(96, 16)
    model = build_model(spec).eval()
    layers = CaffeLayers()
    write_network(layers, spec, size, {name: tensor.numpy() for name, tensor in model.state_dict().items()})
    crops = torch.randint(0, 256, (1, 96, 16, 3), dtype=torch.uint8)
    with torch.inference_mode():
        wanted = DeployedModel(model, size)(crops).double()
        got = Caffe(layers.caffemodel("net")).run(crops.permute(0, 3, 1, 2).double())
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
