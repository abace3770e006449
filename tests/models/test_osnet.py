"""The omni-scale trunk against torchreid's published layout, and against a NumPy forward pass from the formulas."""

import itertools

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view

from reidkit.architecture import OSNetSpec
from reidkit.models.osnet import ChannelGate, LiteConv, OSNet

CHANNELS = {1.0: (64, 256, 384, 512), 0.75: (48, 192, 288, 384), 0.5: (32, 128, 192, 256), 0.25: (16, 64, 96, 128)}

# Where torchreid's networks normalise by instance, read off their state dicts.
SUMS = {"plain": [], "ibn": ["conv2.0", "conv2.1"], "ain": []}
RESIDUALS = {"plain": [], "ibn": [], "ain": ["conv2.0", "conv2.1", "conv3.1", "conv4.0"]}
STEM = {"plain": "batch", "ibn": "instance", "ain": "instance"}


def vectors(name, channels, kind="batch"):
    affine = {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}
    if kind == "instance":
        return affine
    statistics = {f"{name}.running_mean": (channels,), f"{name}.running_var": (channels,)}
    return {**affine, **statistics, f"{name}.num_batches_tracked": ()}


def streams(block, variant):
    """The names of the Lite layers of each stream."""
    if variant == "ain":
        return [[f"{block}.conv2.{depth}.layers.{i}" for i in range(depth + 1)] for depth in range(4)]
    longer = [[f"{block}.conv2{letter}.{i}" for i in range(depth)] for letter, depth in (("b", 2), ("c", 3), ("d", 4))]
    return [[f"{block}.conv2a"], *longer]


def shrinking(stage, variant):
    return f"pool{stage}.0" if variant == "ain" else f"conv{stage}.2.0"


def torchreid_layout(width, variant):
    channels = CHANNELS[width]
    layout = {"conv1.conv.weight": (channels[0], 3, 7, 7), **vectors("conv1.bn", channels[0], STEM[variant])}
    for stage in (2, 3, 4):
        outputs = channels[stage - 1]
        for index in (0, 1):
            block, inner = f"conv{stage}.{index}", outputs // 4
            inputs = channels[stage - 2] if index == 0 else outputs
            layout |= {f"{block}.conv1.conv.weight": (inner, inputs, 1, 1), **vectors(f"{block}.conv1.bn", inner)}
            for lite in itertools.chain(*streams(block, variant)):
                layout |= {f"{lite}.conv1.weight": (inner, inner, 1, 1), f"{lite}.conv2.weight": (inner, 1, 3, 3)}
                layout |= vectors(f"{lite}.bn", inner)
            gate = inner // 16
            layout |= {f"{block}.gate.fc1.weight": (gate, inner, 1, 1), f"{block}.gate.fc1.bias": (gate,)}
            layout |= {f"{block}.gate.fc2.weight": (inner, gate, 1, 1), f"{block}.gate.fc2.bias": (inner,)}
            layout[f"{block}.conv3.conv.weight"] = (outputs, inner, 1, 1)
            if block not in RESIDUALS[variant]:
                layout |= vectors(f"{block}.conv3.bn", outputs)
            if block in SUMS[variant] + RESIDUALS[variant]:
                layout |= vectors(f"{block}.IN", outputs, "instance")
            if index == 0:
                layout[f"{block}.downsample.conv.weight"] = (outputs, inputs, 1, 1)
                layout |= vectors(f"{block}.downsample.bn", outputs)
        if stage < 4:
            layer = shrinking(stage, variant)
            layout |= {f"{layer}.conv.weight": (outputs, outputs, 1, 1), **vectors(f"{layer}.bn", outputs)}
    return layout | {"conv5.conv.weight": (channels[3], channels[3], 1, 1), **vectors("conv5.bn", channels[3])}


@pytest.mark.parametrize("variant", ["plain", "ibn", "ain"])
@pytest.mark.parametrize("width", [1.0, 0.75, 0.5, 0.25])
def test_names_and_shapes_are_those_of_torchreid(width, variant):
    trunk = OSNet(OSNetSpec(width=width, variant=variant))
    assert {name: tuple(tensor.shape) for name, tensor in trunk.state_dict().items()} == torchreid_layout(
        width, variant
    )
    assert trunk.dim == CHANNELS[width][3]


def test_parameters_are_those_that_were_published():
    # torchreid prints 2,193,616 for x1.0 without a classifier. It counts a layer once per use, and the gate of each of
    # the six blocks is used four times; a gate has 2 c (c / 16) weights and c / 16 + c biases at c = 64, 96 and 128.
    gates = 2 * ((2 * 64 * 4 + 68) + (2 * 96 * 6 + 102) + (2 * 128 * 8 + 136))
    fc = 512 * 512 + 512 + 2 * 512
    trunk = sum(p.numel() for p in OSNet(OSNetSpec(width=1.0)).parameters())
    assert trunk + fc + 3 * gates == 2_193_616
    # The paper's table gives 0.2 M for x0.25.
    small = sum(p.numel() for p in OSNet(OSNetSpec(width=0.25)).parameters())
    assert round((small + 128 * 512 + 512 + 2 * 512) / 1e6, 1) == 0.2


def convolve(x, weight, bias=None, stride=1):
    pad, groups = weight.shape[2] // 2, x.shape[1] // weight.shape[1]
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = sliding_window_view(padded, weight.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    parts = zip(np.split(windows, groups, axis=1), np.split(weight, groups), strict=True)
    out = np.concatenate([np.einsum("nchwij,ocij->nohw", window, kernel) for window, kernel in parts], axis=1)
    return out if bias is None else out + bias[:, None, None]


def relu(x):
    return np.maximum(x, 0)


class ByHand:
    """OSNet from its formulas, straight from a state dict, in float64."""

    def __init__(self, weights, variant):
        self.w, self.variant = {name: tensor.double().numpy() for name, tensor in weights.items()}, variant

    def batch_norm(self, x, name):
        part = {
            key: self.w[f"{name}.{key}"][:, None, None] for key in ("weight", "bias", "running_mean", "running_var")
        }
        return (x - part["running_mean"]) / np.sqrt(part["running_var"] + 1e-5) * part["weight"] + part["bias"]

    def instance_norm(self, x, name):
        centred = x - x.mean(axis=(2, 3), keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=(2, 3), keepdims=True) + 1e-5)
        return centred / deviation * self.w[f"{name}.weight"][:, None, None] + self.w[f"{name}.bias"][:, None, None]

    def layer(self, x, name):
        return self.batch_norm(convolve(x, self.w[f"{name}.conv.weight"]), f"{name}.bn")

    def lite(self, x, name):
        linear = convolve(x, self.w[f"{name}.conv1.weight"])
        return relu(self.batch_norm(convolve(linear, self.w[f"{name}.conv2.weight"]), f"{name}.bn"))

    def gate(self, x, name):
        hidden = relu(
            self.w[f"{name}.fc1.weight"][:, :, 0, 0] @ x.mean(axis=(2, 3)).T + self.w[f"{name}.fc1.bias"][:, None]
        )
        score = self.w[f"{name}.fc2.weight"][:, :, 0, 0] @ hidden + self.w[f"{name}.fc2.bias"][:, None]
        return x / (1 + np.exp(-score.T))[:, :, None, None]

    def block(self, x, name):
        shortcut = self.layer(x, f"{name}.downsample") if name.endswith("0") else x
        inner = relu(self.layer(x, f"{name}.conv1"))
        total = 0
        for stream in streams(name, self.variant):
            scale = inner
            for lite in stream:
                scale = self.lite(scale, lite)
            total = total + self.gate(scale, f"{name}.gate")
        if name in RESIDUALS[self.variant]:
            residual = self.instance_norm(convolve(total, self.w[f"{name}.conv3.conv.weight"]), f"{name}.IN")
            return relu(residual + shortcut)
        both = self.layer(total, f"{name}.conv3") + shortcut
        return relu(self.instance_norm(both, f"{name}.IN") if name in SUMS[self.variant] else both)

    def feature_map(self, x):
        x = convolve(x, self.w["conv1.conv.weight"], stride=2)
        x = self.batch_norm(x, "conv1.bn") if STEM[self.variant] == "batch" else self.instance_norm(x, "conv1.bn")
        padded = np.pad(relu(x), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
        x = sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2].max(axis=(4, 5))
        for stage in (2, 3, 4):
            x = self.block(self.block(x, f"conv{stage}.0"), f"conv{stage}.1")
            if stage < 4:
                x = relu(self.layer(x, shrinking(stage, self.variant)))
                x = (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4
        return relu(self.layer(x, "conv5"))


def randomised(module, seed=0):
    """Random vectors too: fresh ones are 0 and 1 and hide what is left out or taken twice."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif name.endswith(("bias", "running_mean")):
            tensor.normal_(std=0.3, generator=generator)
        elif tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5, generator=generator)
    return module.eval()


@pytest.mark.parametrize("variant", ["plain", "ibn", "ain"])
def test_the_feature_map_is_that_of_the_formulas(variant):
    torch.manual_seed(0)
    trunk = randomised(OSNet(OSNetSpec(width=0.25, variant=variant)))
    picture = torch.randn(2, 3, 64, 32)
    with torch.inference_mode():
        got = trunk(picture).numpy()
    expected = ByHand(trunk.state_dict(), variant).feature_map(picture.double().numpy())
    assert got.shape == (2, 128, 4, 2)
    np.testing.assert_allclose(got, expected, atol=2e-5 * expected.max())


def test_a_lite_layer_is_linear_before_its_depthwise_part():
    lite = LiteConv(2).eval()
    with torch.no_grad():
        lite.conv1.weight.copy_(torch.tensor([[1.0, -1.0], [0.0, -1.0]])[:, :, None, None])
        lite.conv2.weight.zero_()
        lite.conv2.weight[0, 0, 1, 2], lite.conv2.weight[1, 0, 1, 1] = 1.0, -1.0
        lite.bn.eps = 0.0
        got = lite(torch.tensor([[[[1.0, 2.0]], [[4.0, 3.0]]]]))
    # The 1x1 part gives (-3, -1) and (-4, -3), with no ReLU between: the first channel then takes its right-hand
    # neighbour, (-1, 0), the second its negative, (4, 3). The ReLU comes last.
    assert got.tolist() == [[[[0.0, 0.0]], [[4.0, 3.0]]]]


def test_the_gate_weighs_channels_by_their_mean():
    gate = ChannelGate(16).eval()
    with torch.no_grad():
        gate.fc1.weight.fill_(0.125)
        gate.fc1.bias.fill_(-1.0)
        gate.fc2.weight.copy_(torch.arange(16.0)[:, None, None, None])
        gate.fc2.bias.fill_(0.5)
        got = gate(torch.tensor([1.0, 3.0]).expand(1, 16, 1, 2)).numpy()
    # The mean is 2 in each channel: relu(16 * 2 / 8 - 1) = 3, and channel c passes sigmoid(3 c + 0.5).
    passed = 1 / (1 + np.exp(-(3.0 * np.arange(16) + 0.5)))
    np.testing.assert_allclose(got[0, :, 0], passed[:, None] * [1.0, 3.0], rtol=1e-6)


def test_the_stem_pools_with_padding():
    picture = torch.arange(16.0).reshape(1, 1, 4, 4)
    pooled = OSNet(OSNetSpec(width=0.25)).maxpool(picture)
    assert pooled.tolist() == [[[[5.0, 7.0], [13.0, 15.0]]]]
