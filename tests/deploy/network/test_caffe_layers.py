"""Caffe files in OpenCV's DNN module against PyTorch: whole networks, and the layers that are put together."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from known_networks import draw_model
from reidkit.architecture import HeadSpec, ModelSpec, OSNetSpec, ResNetSpec
from reidkit.deploy.network.caffe_layers import CaffeLayers
from reidkit.deploy.network.description import write_network
from reidkit.errors import ModelError
from reidkit.models.model import DeployedModel
from reidkit.types import InputSpec

SMALL = InputSpec(64, 32)
ODD = InputSpec(71, 37, color="bgr", scale=1.0, mean=(103.5, 116.25, 123.7), std=(57.4, 57.1, 58.4))
NECK_ONLY = HeadSpec(pooling="average")


def read(layers):
    files = layers.prototxt("net").encode(), layers.caffemodel("net")
    return cv2.dnn.readNetFromCaffe(*(np.frombuffer(file, np.uint8) for file in files))


def run(layers, crops):
    net = read(layers)
    net.setInput(crops.transpose(0, 3, 1, 2).astype(np.float32))
    assert net.getUnconnectedOutLayersNames() == ("embedding",)
    return net.forward()


def random_crops(spec, count=2):
    return np.random.default_rng(1).integers(0, 256, (count, spec.height, spec.width, 3), dtype=np.uint8)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    ("spec", "size"),
    [
        (ModelSpec(ResNetSpec(ibn="a"), HeadSpec(pooling="gem")), SMALL),
        (ModelSpec(ResNetSpec(ibn="a", max_pool="pad"), HeadSpec(gem_learned=True, gem_p=2.5)), SMALL),
        (ModelSpec(ResNetSpec(ibn="b", last_stride=2), HeadSpec(pooling="max")), ODD),
        (ModelSpec(ResNetSpec(ibn="b", max_pool="pad"), HeadSpec(pooling="average+max", neck=False)), ODD),
        (ModelSpec(ResNetSpec(ibn="none", se=True), HeadSpec(pooling="average", embedding_dim=24)), SMALL),
        (ModelSpec(ResNetSpec(ibn="a", preactivation=True), HeadSpec(embedding_dim=24, embedding_bias=True)), SMALL),
        (ModelSpec(ResNetSpec(depth=50, ibn="a", non_local="one"), HeadSpec(relu=True)), SMALL),
        (
            ModelSpec(OSNetSpec(width=0.25), HeadSpec("average", embedding_dim=512, embedding_bias=True, relu=True)),
            SMALL,
        ),
        (ModelSpec(OSNetSpec(width=0.25, variant="ibn"), NECK_ONLY), SMALL),
        (ModelSpec(OSNetSpec(width=0.25, variant="ain"), NECK_ONLY), ODD),
        (ModelSpec(ResNetSpec(ibn="a"), HeadSpec(embedding_dim=8), "mgn"), InputSpec(192, 32)),
    ],
    ids=lambda value: f"{value.height}x{value.width}" if isinstance(value, InputSpec) else None,
)
def test_whole_networks_are_pytorchs(spec, size):
    model, crops = draw_model(spec), random_crops(size)
    layers = CaffeLayers()
    write_network(layers, spec, size, {name: tensor.numpy() for name, tensor in model.state_dict().items()})
    with torch.inference_mode():
        wanted = DeployedModel(model, size)(torch.from_numpy(crops)).numpy()
    np.testing.assert_allclose(run(layers, crops), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


IDENTITY = np.eye(3, dtype=np.float32)[:, :, None, None]


def through(size, layer, *, spread=1.0):
    """What a layer makes of random values, and these, after an input that leaves pixels as they are."""
    spec = InputSpec(*size, scale=255.0 / spread, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    layers = CaffeLayers()
    y = layer(layers, layers.crops(spec))
    layers.embeddings(y)
    crops = random_crops(spec)
    x = torch.from_numpy(crops).permute(0, 3, 1, 2).double() / spec.scale
    return torch.from_numpy(run(layers, crops)).reshape(2, *y.shape).double(), x


@pytest.mark.parametrize("ceil", [True, False])
@pytest.mark.parametrize("size", [(3, 3), (3, 4), (4, 3), (5, 5), (6, 7), (8, 8), (9, 6)])
def test_max_pool_of_any_size(size, ceil):
    padding = 0 if ceil else 1
    got, x = through(size, lambda layers, x: layers.max_pool(x, padding=padding, ceil=ceil))
    torch.testing.assert_close(got, F.max_pool2d(x, 3, 2, padding, ceil_mode=ceil), rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [(2, 2), (3, 4), (4, 3), (5, 7), (8, 6)])
def test_halve_leaves_out_odd_rows_and_columns(size):
    got, x = through(size, lambda layers, x: layers.halve(x))
    torch.testing.assert_close(got, F.avg_pool2d(x, 2, 2), rtol=1e-6, atol=0)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 1), (2, 2)])
def test_a_convolution_of_each_channel_alone_over_one_row_or_column(size, stride):
    weight = np.random.default_rng(0).normal(size=(3, 1, 3, 3)).astype(np.float32)
    got, x = through(size, lambda layers, x: layers.conv(x, weight, stride=stride, padding=1, groups=3))
    wanted = F.conv2d(x, torch.tensor(weight).double(), None, stride, 1, groups=3)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normed", [1, 2, 3])
@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-6])
def test_instance_norm_adds_epsilon_to_the_variance(spread, normed):
    # With a deviation of about 0.003, an epsilon on the deviation would be seen.
    factor, offset = np.float32([0.5, -2.0, 1.5][:normed]), np.float32([0.25, 0.0, -1.0][:normed])
    got, x = through((6, 5), lambda layers, x: layers.instance_norm(x, factor, offset, 1e-5), spread=spread)
    scaling = {"weight": torch.tensor(factor).double(), "bias": torch.tensor(offset).double()}
    first = F.instance_norm(x[:, :normed], **scaling, eps=1e-5)
    torch.testing.assert_close(got, torch.cat([first, x[:, normed:]], 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("p", [0.5, 1.0, 3.0, 6.3])
def test_gem_raises_what_is_not_positive(p):
    shift = np.float32([-0.3, 0.0, -2.0])  # one channel is partly below zero, one whole
    got, x = through((5, 4), lambda layers, x: layers.gem(layers.scale(x, np.ones(3, np.float32), shift), p))
    x = x + torch.tensor(shift)[:, None, None]
    wanted = x.clamp(min=1e-6).pow(p).mean((2, 3), keepdim=True).pow(1 / p)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "parts", [[(0, 3), (3, 6), (6, 7)], [(4, 7), (0, 4)], [(2, 5)], [(0, 7)], [(0, 4), (2, 5), (0, 4)]]
)
def test_rows_in_any_order(parts):
    def layer(layers, x):
        return layers.concat([layers.mean(layers.rows(x, start, stop)) for start, stop in parts])

    spec = InputSpec(7, 3, scale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    layers, crops = CaffeLayers(), random_crops(InputSpec(7, 3))
    layers.embeddings(layer(layers, layers.crops(spec)))
    net = read(layers)
    net.setInput(crops.transpose(0, 3, 1, 2).astype(np.float32))
    wanted = np.concatenate([crops[:, start:stop].mean((1, 2)) for start, stop in parts], 1)
    np.testing.assert_allclose(net.forward("embedding"), wanted, rtol=1e-6)


def test_parts_that_fit_together_are_one_slice():
    layers = CaffeLayers()
    x = layers.crops(InputSpec(9, 3))
    parts = [layers.rows(x, start, start + 3) for start in (0, 3, 6)]
    text = layers.prototxt("net")
    assert text.count("slice_point") == 2
    assert text.count('type: "Slice"') == 1
    assert [part.shape for part in parts] == [(3, 3, 3)] * 3


def test_a_layers_own_blob_is_never_overwritten():
    layers = CaffeLayers()
    x = layers.crops(InputSpec(4, 4, scale=1.0, mean=(100.0, 100.0, 100.0), std=(1.0, 1.0, 1.0)))
    layers.embeddings(layers.mean(layers.add(layers.relu(x), x)))
    crops = random_crops(InputSpec(4, 4))
    x = crops - 100.0
    np.testing.assert_allclose(run(layers, crops), (np.maximum(x, 0) + x).mean((1, 2)), rtol=1e-5)


def test_float32_only():
    layers = CaffeLayers()
    x = layers.crops(SMALL)
    assert layers.cast(x, "float32") is x
    with pytest.raises(ModelError, match=r"Caffe computes in float32 alone\n  got: float16\n  to do: write"):
        layers.cast(x, "float16")


def test_wide_non_local_blocks_are_refused_with_what_to_do():
    layers = CaffeLayers()
    x = layers.crops(SMALL)
    with pytest.raises(ModelError) as caught:
        layers.attend(x, x, x)
    assert "Caffe has no product of two feature maps" in str(caught.value)
    assert "got: non-local blocks of inner width 3" in str(caught.value)
    assert "to do: run the bundle itself, or its model.onnx" in str(caught.value)


@pytest.mark.parametrize(("size", "padding"), [((4, 4), 0), ((1, 4), 1)])
def test_a_pooling_that_cannot_be_put_together_is_refused(size, padding):
    layers = CaffeLayers()
    x = layers.crops(InputSpec(*size))
    got = f"a max-pooling that rounds down, of {size[0]} x {size[1]} positions with padding {padding}"
    with pytest.raises(ModelError, match=f"Caffe's pooling rounds sizes up\n  got: {got}\n  expected: padding 1"):
        layers.max_pool(x, padding=padding, ceil=False)
