"""Known networks in float64 NumPy: against PyTorch, against an independent reading, and layer by layer."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.random import default_rng

from foreign_checkpoints import make_fastreid_resnet, make_torchreid_osnet
from known_networks import CASES, distance, known
from numpy_networks import fastreid_resnet, torchreid_osnet
from reidkit.architecture import HeadSpec, ModelSpec, OSNetSpec, ResNetSpec
from reidkit.deploy.network.layers import Layers
from reidkit.deploy.network.numpy_layers import NumpyLayers, run_network
from reidkit.types import InputSpec

CROPS = default_rng(0).integers(0, 256, (2, 64, 32, 3), dtype=np.uint8)
LAYERS = NumpyLayers(CROPS)


def float32(*shape):
    return default_rng(2).normal(size=shape).astype(np.float32)


def float64(*shape):
    return default_rng(3).normal(size=shape)


def same(got, torch_value):
    np.testing.assert_allclose(got, torch_value.numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("case", CASES)
def test_every_known_network_gives_what_pytorch_gives(case):
    spec, input_, tensors, crops, embeddings = known(case)
    assert distance(run_network(spec, input_, tensors, crops), embeddings) < 5e-6


def test_a_resnet_is_the_one_that_fastreid_publishes():
    tensors = make_fastreid_resnet(default_rng(0), era="2021-04", depth=50, ibn=True, non_local=True, pooling="gem")
    spec = ModelSpec(ResNetSpec(depth=50, non_local="one"), HeadSpec(gem_learned=True))
    input_ = InputSpec(64, 32, scale=1.0, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
    pixels = (CROPS - np.array(input_.mean)) / np.array(input_.std)
    truth = fastreid_resnet(tensors, pixels.transpose(0, 3, 1, 2), depth=50, ibn=True, non_local=True, pooling="gem")
    assert distance(run_network(spec, input_, tensors, CROPS), truth) < 1e-6


@pytest.mark.parametrize("variant", ["plain", "ibn", "ain"])
def test_an_osnet_is_the_one_that_torchreid_publishes(variant):
    theirs = make_torchreid_osnet(default_rng(0), width=0.25, variant=variant)
    head = {"fc.0": "heads.bottleneck.0", "fc.1": "heads.bottleneck.1"}
    ours = {}
    for name, tensor in theirs.items():
        if name.startswith("fc."):
            canonical = name.replace(name[:4], head[name[:4]])
            ours[canonical] = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        elif not name.startswith("classifier."):
            ours[f"backbone.{name}"] = tensor
    spec = ModelSpec(
        OSNetSpec(width=0.25, variant=variant),
        HeadSpec(pooling="average", embedding_dim=512, embedding_bias=True, relu=True),
    )
    input_ = InputSpec(64, 32)
    pixels = (CROPS / 255 - np.array(input_.mean)) / np.array(input_.std)
    truth = torchreid_osnet(theirs, pixels.transpose(0, 3, 1, 2), variant=variant)
    assert distance(run_network(spec, input_, ours, CROPS), truth) < 1e-6


def test_it_is_a_writer_like_any_other():
    assert isinstance(LAYERS, Layers)
    assert LAYERS.result.shape == (2, 0)


def test_pixels_become_what_the_network_sees():
    crops = np.array([[[[255, 51, 0], [0, 102, 204]]]], np.uint8)
    spec = InputSpec(1, 2, color="bgr", mean=(0.0, 0.2, 0.5), std=(0.5, 0.1, 0.25))
    expected = [[[[0.0, 1.6]], [[0.0, 2.0]], [[2.0, -2.0]]]]  # blue, green, red
    np.testing.assert_allclose(NumpyLayers(crops).crops(spec), expected, atol=1e-14)


@pytest.mark.parametrize(
    ("inputs", "outputs", "kernel", "groups", "stride", "padding"),
    [(3, 8, 7, 1, 2, 3), (6, 4, 1, 1, 2, 0), (6, 6, 3, 6, 1, 1), (6, 9, 3, 3, 2, 1), (5, 2, 3, 1, 2, 1)],
)
def test_convolutions(inputs, outputs, kernel, groups, stride, padding):
    x, weight, bias = float64(2, inputs, 11, 8), float32(outputs, inputs // groups, kernel, kernel), float32(outputs)
    options = {"stride": stride, "padding": padding, "groups": groups}
    tensors = torch.from_numpy(x), torch.from_numpy(weight).double()
    same(LAYERS.conv(x, weight, bias, **options), F.conv2d(*tensors, torch.from_numpy(bias).double(), **options))
    same(LAYERS.conv(x, weight, **options), F.conv2d(*tensors, **options))


@pytest.mark.parametrize(("padding", "ceil"), [(0, True), (1, False)])
@pytest.mark.parametrize("size", [(4, 5), (7, 8), (9, 3), (2, 2), (18, 32)])
def test_max_pooling_knows_no_padding_as_a_maximum(padding, ceil, size):
    x = float64(1, 3, *size) - 10
    truth = F.max_pool2d(torch.from_numpy(x), 3, 2, padding, ceil_mode=ceil)
    same(LAYERS.max_pool(x, padding=padding, ceil=ceil), truth)


def test_the_first_channels_are_normalized_and_the_others_stay():
    x, factor, offset = float64(2, 5, 4, 3), float32(2), float32(2)
    got = LAYERS.instance_norm(x, factor, offset, 1e-5)
    weight, bias = (torch.from_numpy(values).double() for values in (factor, offset))
    first = torch.from_numpy(x[:, :2].copy())
    same(got[:, :2], F.instance_norm(first, None, None, weight, bias, eps=1e-5))
    np.testing.assert_array_equal(got[:, 2:], x[:, 2:])


def test_attention_by_its_definition():
    g, theta, phi = (default_rng(seed).normal(size=(2, 3, 2, 4)) for seed in range(3))
    got = LAYERS.attend(g, theta, phi)
    flat = [value.reshape(2, 3, 8) for value in (g, theta, phi)]
    for crop in range(2):
        for i in range(8):
            terms = [flat[1][crop, :, i] @ flat[2][crop, :, j] * flat[0][crop, :, j] for j in range(8)]
            np.testing.assert_allclose(got.reshape(2, 3, 8)[crop, :, i], np.mean(terms, axis=0), atol=1e-12)


def test_poolings_and_activations():
    x = float64(2, 3, 5, 4)
    tensor = torch.from_numpy(x)
    same(LAYERS.halve(x), F.avg_pool2d(tensor, 2, 2))
    same(LAYERS.mean(x), F.adaptive_avg_pool2d(tensor, 1))
    same(LAYERS.maximum(x), F.adaptive_max_pool2d(tensor, 1))
    same(LAYERS.gem(x, 2.5), (tensor.clamp(min=1e-6) ** 2.5).mean((2, 3), keepdim=True) ** 0.4)
    same(LAYERS.sigmoid(x), torch.sigmoid(tensor))
    assert LAYERS.sigmoid(np.full((1, 1, 1, 1), -1e4)).item() == 0
    same(LAYERS.relu(x), torch.relu(tensor))
    np.testing.assert_array_equal(LAYERS.rows(x, 1, 3), x[:, :, 1:3])
