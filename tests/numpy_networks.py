"""Other projects' networks as straight-line NumPy in float64, each reading its checkpoint by that project's own names.

They follow the published formulas and share no code with `reidkit.models`: the independent truth for imported weights.
Pixels are `(n, 3, height, width)`, already normalised; the result is `(n, dim)`, as the original evaluates.
"""

from functools import reduce
from typing import Literal, TypeAlias

import numpy as np

from numpy_layers import (
    Array,
    Tensors,
    batch_norm,
    conv,
    convolve,
    generalized_mean,
    halve,
    ibn_a,
    instance_norm,
    leaky_relu,
    linear,
    max_pool_3x3,
    non_local_block,
    relu,
    sigmoid,
    squeeze_excite,
    value,
)

MaxPool: TypeAlias = Literal["ceil", "pad"]
Pooling: TypeAlias = Literal["average", "max", "gem", "average+max"]
Neck: TypeAlias = Literal["bnneck", "bottleneck", "none"]
Variant: TypeAlias = Literal["plain", "ibn", "ain"]

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
NON_LOCAL = {18: (0, 0, 0, 0), 34: (0, 0, 0, 0), 50: (0, 2, 3, 0), 101: (0, 2, 9, 0)}
MGN_HEADS = ("b1", "b2", "b3", "b21", "b22", "b31", "b32", "b33")


def fastreid_resnet(
    tensors: Tensors,
    pixels: Array,
    *,
    depth: int,
    ibn: bool = False,
    se: bool = False,
    non_local: bool = False,
    last_stride: int = 1,
    max_pool: MaxPool = "ceil",
    preactivation: bool = False,
    pooling: Pooling = "average",
    gem_p: float | None = None,
    embedding_layer: bool = False,
    neck: Neck = "bottleneck",
) -> Array:
    """Runs a `Baseline` of fast-reid.

    Args:
        tensors: The checkpoint's `model`.
        pixels: The batch.
        depth: 18, 34, 50 or 101 (152 in the oldest files).
        ibn: With IBN-a in layers 1 to 3.
        se: With squeeze-and-excitation.
        non_local: With non-local blocks; the pre-activation network ignores it.
        last_stride: Of layer 4.
        max_pool: "ceil" from November 2020 on, "pad" before.
        preactivation: Built by `build_resnet_backbone_distill`.
        pooling: Of the head.
        gem_p: GeM's exponent; None reads the learned one.
        embedding_layer: With a 1x1 convolution before the BNneck (`EMBEDDING_DIM`, or the older `ReductionHead`).
        neck: What the BNneck is called: "bnneck" before September 2020, "none" without one.
    """
    x = _stem(tensors, "backbone.", pixels, max_pool)
    stages = zip(BLOCKS[depth], NON_LOCAL[depth] if non_local else (0, 0, 0, 0), strict=True)
    for stage, (blocks, non_locals) in enumerate(stages, 1):
        stride = (1, 2, 2, last_stride)[stage - 1]
        for i in range(blocks):
            name = f"backbone.layer{stage}.{i}"
            block_stride = stride if i == 0 else 1
            x = _block(tensors, name, x, block_stride, ibn=ibn and stage < 4, se=se, preactivation=preactivation)
            nth = i - (blocks - non_locals)
            if nth >= 0 and not preactivation:
                x = non_local_block(tensors, f"backbone.NL_{stage}.{nth}", x)
    if preactivation:
        x = relu(x)
    return _fastreid_head(tensors, "heads", x, pooling, gem_p, neck, embedding_layer=embedding_layer)


def fastreid_mgn(
    tensors: Tensors,
    pixels: Array,
    *,
    depth: int = 50,
    ibn: bool = True,
    se: bool = False,
    max_pool: MaxPool = "ceil",
    pooling: Pooling = "gem",
    gem_p: float | None = None,
    neck: Neck = "bottleneck",
) -> Array:
    """Runs the `MGN` of fast-reid (strides 1 in layer 4): eight features of three branches, side by side."""
    x = relu(batch_norm(tensors, "backbone.1", conv(tensors, "backbone.0", pixels, stride=2)))
    x = _max_pool(x, max_pool)
    _, in_layer2, in_layer3, in_layer4 = BLOCKS[depth]
    for i in range(BLOCKS[depth][0]):
        x = _block(tensors, f"backbone.4.{i}", x, 1, ibn=ibn, se=se)
    for i in range(in_layer2):
        x = _block(tensors, f"backbone.5.{i}", x, 2 if i == 0 else 1, ibn=ibn, se=se)
    x = _block(tensors, "backbone.6", x, 2, ibn=ibn, se=se)

    maps: dict[str, Array] = {}
    for branch in ("b1", "b2", "b3"):
        y = x
        for i in range(in_layer3 - 1):
            y = _block(tensors, f"{branch}.0.{i}", y, 1, ibn=ibn, se=se)
        for i in range(in_layer4):
            y = _block(tensors, f"{branch}.1.{i}", y, 1, se=se)
        maps[branch] = y
    maps["b21"], maps["b22"] = parts(maps["b2"], 2)
    maps["b31"], maps["b32"], maps["b33"] = parts(maps["b3"], 3)
    features = [
        _fastreid_head(tensors, f"{name}_head", maps[name], pooling, gem_p, neck, embedding_layer=True)
        for name in MGN_HEADS
    ]
    return np.concatenate(features, axis=1)


def torchreid_osnet(tensors: Tensors, pixels: Array, *, variant: Variant = "plain") -> Array:
    """Runs an OSNet of torchreid, up to and with the ReLU after `fc`: what it returns in evaluation."""
    norm = batch_norm if variant == "plain" else instance_norm
    x = relu(norm(tensors, "conv1.bn", conv(tensors, "conv1.conv", pixels, stride=2)))
    x = _max_pool(x, "pad")
    ain_in_branch = {"conv2.0", "conv2.1", "conv3.1", "conv4.0"}
    for stage in ("conv2", "conv3", "conv4"):
        for block in (f"{stage}.0", f"{stage}.1"):
            if variant == "ain":
                x = _osnet_ain_block(tensors, block, x, in_branch=block in ain_in_branch)
            else:
                x = _osnet_block(tensors, block, x, in_after_sum=variant == "ibn" and stage == "conv2")
        if stage != "conv4":
            transition = f"pool{stage[-1]}.0" if variant == "ain" else f"{stage}.2.0"
            x = halve(relu(_conv_bn(tensors, transition, x)))
    x = relu(_conv_bn(tensors, "conv5", x))
    return _torchreid_fc(tensors, x.mean((2, 3)))


def torchreid_resnet50(tensors: Tensors, pixels: Array) -> Array:
    """Runs torchreid's `resnet50` (last stride 2, pooled features), or `resnet50_fc512` where the file has `fc`."""
    with_fc = "fc.0.weight" in tensors
    features = torchvision_resnet(tensors, pixels, depth=50, last_stride=1 if with_fc else 2)
    return _torchreid_fc(tensors, features) if with_fc else features


def torchvision_resnet(
    tensors: Tensors, pixels: Array, *, depth: int, ibn: bool = False, last_stride: int = 2
) -> Array:
    """Runs a ResNet of torchvision, or of IBN-Net, up to its averaged features."""
    x = _stem(tensors, "", pixels, "pad")
    for stage, blocks in enumerate(BLOCKS[depth], 1):
        stride = (1, 2, 2, last_stride)[stage - 1]
        for i in range(blocks):
            x = _block(tensors, f"layer{stage}.{i}", x, stride if i == 0 else 1, ibn=ibn and stage < 4)
    return x.mean((2, 3))


def _max_pool(x: Array, kind: MaxPool) -> Array:
    return max_pool_3x3(x, padding=0, ceil_mode=True) if kind == "ceil" else max_pool_3x3(x, padding=1, ceil_mode=False)


def _stem(tensors: Tensors, prefix: str, pixels: Array, kind: MaxPool) -> Array:
    x = conv(tensors, f"{prefix}conv1", pixels, stride=2)
    return _max_pool(relu(batch_norm(tensors, f"{prefix}bn1", x)), kind)


def _block(
    tensors: Tensors,
    name: str,
    x: Array,
    stride: int,
    *,
    ibn: bool = False,
    se: bool = False,
    preactivation: bool = False,
) -> Array:
    """A bottleneck (stride on conv2), or a basic block (stride on conv1) where there is no conv3."""
    bottleneck = f"{name}.conv3.weight" in tensors
    if preactivation:
        x = relu(x)
    y = conv(tensors, f"{name}.conv1", x, stride=1 if bottleneck else stride)
    y = relu((ibn_a if ibn else batch_norm)(tensors, f"{name}.bn1", y))
    y = batch_norm(tensors, f"{name}.bn2", conv(tensors, f"{name}.conv2", y, stride=stride if bottleneck else 1))
    if bottleneck:
        y = batch_norm(tensors, f"{name}.bn3", conv(tensors, f"{name}.conv3", relu(y)))
    if se:
        y = squeeze_excite(tensors, f"{name}.se", y)
    if f"{name}.downsample.0.weight" in tensors:
        x = batch_norm(tensors, f"{name}.downsample.1", conv(tensors, f"{name}.downsample.0", x, stride=stride))
    return y + x if preactivation else relu(y + x)


def _fastreid_head(
    tensors: Tensors,
    name: str,
    x: Array,
    pooling: Pooling,
    gem_p: float | None,
    neck: Neck,
    *,
    embedding_layer: bool,
) -> Array:
    if pooling == "gem":
        y = generalized_mean(x, value(tensors, f"{name}.pool_layer.p").item() if gem_p is None else gem_p)
    else:
        y = {"average": x.mean((2, 3)), "max": x.max((2, 3)), "average+max": x.mean((2, 3)) + x.max((2, 3))}[pooling]
    y = y[:, :, None, None]
    if embedding_layer:
        y = convolve(y, value(tensors, f"{name}.bottleneck.0.weight"))
    if neck == "bnneck":
        if embedding_layer:
            y = leaky_relu(batch_norm(tensors, f"{name}.bottleneck.1", y), 0.1)
        y = batch_norm(tensors, f"{name}.bnneck", y)
    elif neck == "bottleneck":
        y = batch_norm(tensors, f"{name}.bottleneck.{int(embedding_layer)}", y)
    return y[:, :, 0, 0]


def parts(x: Array, count: int) -> list[Array]:
    """Cuts along the height into parts of ceil(height / count) rows; the last one has what is left."""
    rows = -(-x.shape[2] // count)
    return [x[:, :, top : top + rows] for top in range(0, x.shape[2], rows)]


def _conv_bn(tensors: Tensors, name: str, x: Array) -> Array:
    return batch_norm(tensors, f"{name}.bn", conv(tensors, f"{name}.conv", x))


def _light_conv(tensors: Tensors, name: str, x: Array) -> Array:
    """A 1x1 convolution, then a 3x3 one of each channel by itself."""
    x = conv(tensors, f"{name}.conv2", conv(tensors, f"{name}.conv1", x))
    return relu(batch_norm(tensors, f"{name}.bn", x))


def _streams(tensors: Tensors, streams: list[list[str]], gate: str, x: Array) -> Array:
    """The sum of the streams, each weighted per channel by the one gate that they share."""
    total = np.zeros_like(x)
    for stream in streams:
        y = reduce(lambda y, name: _light_conv(tensors, name, y), stream, x)
        squeezed = relu(conv(tensors, f"{gate}.fc1", y.mean((2, 3), keepdims=True)))
        total += y * sigmoid(conv(tensors, f"{gate}.fc2", squeezed))
    return total


def _osnet_block(tensors: Tensors, name: str, x: Array, *, in_after_sum: bool) -> Array:
    lengths = {"b": 2, "c": 3, "d": 4}
    streams = [[f"{name}.conv2a"]]
    streams += [[f"{name}.conv2{letter}.{i}" for i in range(length)] for letter, length in lengths.items()]
    y = _streams(tensors, streams, f"{name}.gate", relu(_conv_bn(tensors, f"{name}.conv1", x)))
    y = _conv_bn(tensors, f"{name}.conv3", y) + _osnet_identity(tensors, name, x)
    return relu(instance_norm(tensors, f"{name}.IN", y) if in_after_sum else y)


def _osnet_ain_block(tensors: Tensors, name: str, x: Array, *, in_branch: bool) -> Array:
    streams = [[f"{name}.conv2.{t}.layers.{i}" for i in range(t + 1)] for t in range(4)]
    y = _streams(tensors, streams, f"{name}.gate", relu(_conv_bn(tensors, f"{name}.conv1", x)))
    if in_branch:
        y = instance_norm(tensors, f"{name}.IN", conv(tensors, f"{name}.conv3.conv", y))
    else:
        y = _conv_bn(tensors, f"{name}.conv3", y)
    return relu(y + _osnet_identity(tensors, name, x))


def _osnet_identity(tensors: Tensors, name: str, x: Array) -> Array:
    return _conv_bn(tensors, f"{name}.downsample", x) if f"{name}.downsample.conv.weight" in tensors else x


def _torchreid_fc(tensors: Tensors, features: Array) -> Array:
    return relu(batch_norm(tensors, "fc.1", linear(tensors, "fc.0", features)))
