"""What is in the checkpoints of other projects: names, shapes and order, written down from their sources.

A layout lists a checkpoint's tensors and how to draw each. The weights keep the activations near 1 and leave no part of
the network without effect, so that every mistake in an import shows.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from numpy_networks import BLOCKS, NON_LOCAL, MaxPool, Pooling, Variant

Shape: TypeAlias = tuple[int, ...]
Draw: TypeAlias = Callable[[Generator, Shape], NDArray[Any]]

PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "pixel_mean", "pixel_std")
SHRINK = 0.25  # of the last convolution of a residual branch, so that a hundred layers do not add up


class Entry(NamedTuple):
    """One tensor of a checkpoint, not drawn yet."""

    name: str
    shape: Shape
    draw: Draw


@dataclass(frozen=True)
class Era:
    """A stretch of fast-reid's history with one way to write a ResNet."""

    neck: Literal["bnneck", "bottleneck"]
    classifier: str
    pixel_buffers: bool
    non_local_halves: bool
    max_pool: MaxPool


ERAS = {
    "2020-08": Era("bnneck", "classifier.weight", True, False, "pad"),
    "2020-10": Era("bottleneck", "classifier.weight", True, True, "pad"),
    "2020-11": Era("bottleneck", "classifier.weight", True, True, "ceil"),
    "2021-01": Era("bottleneck", "classifier.weight", True, False, "ceil"),
    "2021-04": Era("bottleneck", "weight", False, False, "ceil"),
}
OSNET_WIDTHS = {1.0: (64, 256, 384, 512), 0.75: (48, 192, 288, 384), 0.5: (32, 128, 192, 256), 0.25: (16, 64, 96, 128)}


def parameters(layout: Iterable[Entry]) -> int:
    """Counts the learnable numbers: without running statistics, counters and pixel buffers."""
    return sum(int(np.prod(entry.shape)) for entry in layout if not entry.name.endswith(BUFFERS))


def fastreid_resnet_layout(
    *,
    era: str = "2021-04",
    depth: int = 50,
    ibn: bool = False,
    se: bool = False,
    non_local: bool = False,
    pooling: Pooling = "average",
    learned_p: bool = True,
    embedding_dim: int = 0,
    with_bnneck: bool = True,
    classes: int = 5,
    teachers: Sequence[int] = (),
) -> Iterator[Entry]:
    """Lists a `Baseline`.

    Args:
        era: Of `ERAS`.
        depth: 18, 34, 50 or 101.
        ibn: With IBN-a.
        se: With squeeze-and-excitation.
        non_local: With non-local blocks.
        pooling: Of the head; only a learned "gem" has a tensor.
        learned_p: Whether GeM's exponent is learned.
        embedding_dim: Of the 1x1 convolution before the BNneck (`ReductionHead` in the first era); 0 for none.
        with_bnneck: With the BNneck.
        classes: Identities that it was trained on.
        teachers: Depths of the networks that the overhaul distiller learned from; a plain student has none.
    """
    written = ERAS[era]
    width = _width(depth)
    if written.pixel_buffers:
        yield from _pixel_buffers()
    for i, teacher in enumerate(teachers):
        for j in range(4):
            channels = 64 * 2**j * _expansion(teacher)
            yield Entry(f"margin{i}_{j + 1}", (1, channels, 1, 1), _centred(0.3))
    yield from _resnet("backbone.", depth, ibn=ibn, se=se)
    if non_local:
        for stage, blocks in enumerate(NON_LOCAL[depth], 1):
            channels = 64 * 2 ** (stage - 1) * _expansion(depth)
            inner = channels // 2 if written.non_local_halves else 1
            for i in range(blocks):
                yield from _non_local(f"backbone.NL_{stage}.{i}", channels, inner)
    gem = pooling == "gem" and learned_p
    yield from _fastreid_head("heads", written, width, embedding_dim, classes, gem=gem, bnneck=with_bnneck)
    for i, teacher in enumerate(teachers):
        for j in range(4):
            name, wide = f"connectors_{i}.{j}", 64 * 2**j
            yield _conv(f"{name}.0", wide * _expansion(teacher), wide * _expansion(depth))
            yield from _norm(f"{name}.1", wide * _expansion(teacher))


def fastreid_mgn_layout(
    *,
    era: str = "2021-04",
    depth: int = 50,
    ibn: bool = True,
    se: bool = False,
    pooling: Pooling = "gem",
    learned_p: bool = True,
    embedding_dim: int = 256,
    classes: int = 5,
) -> Iterator[Entry]:
    """Lists an `MGN` (of bottlenecks); the options are those of `fastreid_resnet_layout`."""
    written = ERAS[era]
    in_layer1, in_layer2, in_layer3, in_layer4 = BLOCKS[depth]
    if written.pixel_buffers:
        yield from _pixel_buffers()
    yield _conv("backbone.0", 64, 3, 7)
    yield from _norm("backbone.1", 64)
    yield from _stage("backbone.4", depth, 64, 64, in_layer1, 1, ibn=ibn, se=se)
    yield from _stage("backbone.5", depth, 256, 128, in_layer2, 2, ibn=ibn, se=se)
    yield from _block("backbone.6", depth, 512, 256, 2, ibn=ibn, se=se)
    for branch, heads in {"b1": ("b1",), "b2": ("b2", "b21", "b22"), "b3": ("b3", "b31", "b32", "b33")}.items():
        yield from _stage(f"{branch}.0", depth, 1024, 256, in_layer3 - 1, 1, ibn=ibn, se=se)
        yield from _stage(f"{branch}.1", depth, 1024, 512, in_layer4, 1, ibn=False, se=se)
        for head in heads:
            gem = pooling == "gem" and learned_p
            yield from _fastreid_head(f"{head}_head", written, 2048, embedding_dim, classes, gem=gem, bnneck=True)


def torchreid_osnet_layout(*, width: float = 0.25, variant: Variant = "plain", classes: int = 5) -> Iterator[Entry]:
    """Lists an OSNet of torchreid, with its classifier."""
    stem, *stages = OSNET_WIDTHS[width]
    yield _conv("conv1.conv", stem, 3, 7)
    yield from _norm("conv1.bn", stem) if variant == "plain" else _instance_norm("conv1.bn", stem)
    incoming = stem
    ain_in_branch = {"conv2.0", "conv2.1", "conv3.1", "conv4.0"}
    for stage, out in enumerate(stages, 2):
        for i in range(2):
            name = f"conv{stage}.{i}"
            if variant == "ain":
                yield from _osnet_ain_block(name, incoming, out, in_branch=name in ain_in_branch)
            else:
                yield from _osnet_block(name, incoming, out, in_after_sum=variant == "ibn" and stage == 2)
            incoming = out
        if stage < 4:
            yield from _conv_bn(f"pool{stage}.0" if variant == "ain" else f"conv{stage}.2.0", out, out)
    yield from _conv_bn("conv5", incoming, incoming)
    yield from _torchreid_fc(incoming, 512)
    yield from _linear("classifier", classes, 512)


def torchreid_resnet50_layout(*, fc512: bool = False, classes: int = 5) -> Iterator[Entry]:
    """Lists torchreid's `resnet50` or `resnet50_fc512`, with its classifier."""
    yield from _resnet("", 50)
    if fc512:
        yield from _torchreid_fc(2048, 512)
    yield from _linear("classifier", classes, 512 if fc512 else 2048)


def torchvision_resnet_layout(*, depth: int, ibn: bool = False, classes: int = 5) -> Iterator[Entry]:
    """Lists a ResNet of torchvision, timm or IBN-Net, with its classifier."""
    yield from _resnet("", depth, ibn=ibn)
    yield from _linear("fc", classes, _width(depth))


def timm_resnet_d_layout(*, depth: int, classes: int = 5) -> Iterator[Entry]:
    """Lists a ResNet-D of timm, with its classifier."""
    for place, (out, incoming) in zip((0, 3, 6), ((32, 3), (32, 32), (64, 32)), strict=True):
        yield _conv(f"conv1.{place}", out, incoming, 3)
        if place < 6:
            yield from _norm(f"conv1.{place + 1}", out)
    for entry in _resnet("", depth):
        if entry.name == "conv1.weight":
            continue
        name = entry.name.replace("downsample.1", "downsample.2").replace("downsample.0", "downsample.1")
        yield entry._replace(name=name)
    yield from _linear("fc", classes, _width(depth))


def _expansion(depth: int) -> int:
    return 1 if depth < 50 else 4


def _width(depth: int) -> int:
    return 512 * _expansion(depth)


def _centred(std: float) -> Draw:
    """Draws uniformly around 0, which takes a third of the time of a normal distribution."""

    def drawn(rng: Generator, shape: Shape) -> NDArray[Any]:
        tensor = rng.random(shape, dtype=np.float32)
        tensor -= np.float32(0.5)
        tensor *= np.float32(std * 12**0.5)
        return tensor

    return drawn


def _uniform(low: float, high: float) -> Draw:
    return lambda rng, shape: rng.uniform(low, high, shape).astype(np.float32)


def _constant(values: Sequence[float]) -> Draw:
    return lambda _, shape: np.array(values, np.float32).reshape(shape)


def _counter(rng: Generator, shape: Shape) -> NDArray[Any]:
    return np.array(rng.integers(1, 100_000), np.int64).reshape(shape)


def _conv(name: str, out: int, incoming: int, size: int = 1, *, groups: int = 1, gain: float = 1.0) -> Entry:
    per_group = incoming // groups
    std = gain * (2 / (per_group * size * size)) ** 0.5
    return Entry(f"{name}.weight", (out, per_group, size, size), _centred(std))


def _linear(name: str, out: int, incoming: int) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", (out, incoming), _centred(incoming**-0.5))
    yield Entry(f"{name}.bias", (out,), _centred(0.2))


def _instance_norm(name: str, channels: int) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", (channels,), _uniform(0.5, 1.5))
    yield Entry(f"{name}.bias", (channels,), _centred(0.2))


def _norm(name: str, channels: int) -> Iterator[Entry]:
    yield from _instance_norm(name, channels)
    yield Entry(f"{name}.running_mean", (channels,), _centred(0.2))
    yield Entry(f"{name}.running_var", (channels,), _uniform(0.5, 2))
    yield Entry(f"{name}.num_batches_tracked", (), _counter)


def _conv_bn(name: str, out: int, incoming: int, gain: float = 1.0) -> Iterator[Entry]:
    yield _conv(f"{name}.conv", out, incoming, gain=gain)
    yield from _norm(f"{name}.bn", out)


def _pixel_buffers() -> Iterator[Entry]:
    yield Entry("pixel_mean", (1, 3, 1, 1), _constant(PIXEL_MEAN))
    yield Entry("pixel_std", (1, 3, 1, 1), _constant(PIXEL_STD))


def _resnet(prefix: str, depth: int, *, ibn: bool = False, se: bool = False) -> Iterator[Entry]:
    yield _conv(f"{prefix}conv1", 64, 3, 7)
    yield from _norm(f"{prefix}bn1", 64)
    incoming = 64
    for stage, blocks in enumerate(BLOCKS[depth], 1):
        planes = 64 * 2 ** (stage - 1)
        name, stride = f"{prefix}layer{stage}", 1 if stage == 1 else 2
        yield from _stage(name, depth, incoming, planes, blocks, stride, ibn=ibn and stage < 4, se=se)
        incoming = planes * _expansion(depth)


def _stage(
    name: str, depth: int, incoming: int, planes: int, blocks: int, stride: int, *, ibn: bool, se: bool
) -> Iterator[Entry]:
    for i in range(blocks):
        yield from _block(f"{name}.{i}", depth, incoming, planes, stride if i == 0 else 1, ibn=ibn, se=se)
        incoming = planes * _expansion(depth)


def _block(name: str, depth: int, incoming: int, planes: int, stride: int, *, ibn: bool, se: bool) -> Iterator[Entry]:
    out = planes * _expansion(depth)
    last = 3 if depth >= 50 else 2
    yield _conv(f"{name}.conv1", planes, incoming, 1 if depth >= 50 else 3)
    if ibn:
        yield from _instance_norm(f"{name}.bn1.IN", planes // 2)
        yield from _norm(f"{name}.bn1.BN", planes - planes // 2)
    else:
        yield from _norm(f"{name}.bn1", planes)
    yield _conv(f"{name}.conv2", planes, planes, 3, gain=SHRINK if last == 2 else 1)
    yield from _norm(f"{name}.bn2", planes)
    if last == 3:
        yield _conv(f"{name}.conv3", out, planes, gain=SHRINK)
        yield from _norm(f"{name}.bn3", out)
    if se:
        yield Entry(f"{name}.se.fc.0.weight", (out // 16, out), _centred(2 * out**-0.5))
        yield Entry(f"{name}.se.fc.2.weight", (out, out // 16), _centred(2 * (out // 16) ** -0.5))
    if stride != 1 or incoming != out:
        yield _conv(f"{name}.downsample.0", out, incoming, gain=0.7)
        yield from _norm(f"{name}.downsample.1", out)


def _non_local(name: str, channels: int, inner: int) -> Iterator[Entry]:
    """Lists one block; its product grows with the cube of its input, so its projections lean on their biases."""

    def conv(part: str, out: int, incoming: int, std: float) -> Iterator[Entry]:
        yield Entry(f"{name}.{part}.weight", (out, incoming, 1, 1), _centred(std))
        yield Entry(f"{name}.{part}.bias", (out,), _centred(inner**-0.25))

    yield from conv("g", inner, channels, 0.1 * channels**-0.5)
    yield from conv("W.0", channels, inner, inner**-0.5)
    yield from _norm(f"{name}.W.1", channels)
    yield from conv("theta", inner, channels, 0.1 * (channels * inner**0.5) ** -0.5)
    yield from conv("phi", inner, channels, 0.1 * (channels * inner**0.5) ** -0.5)


def _fastreid_head(
    name: str, era: Era, width: int, embedding_dim: int, classes: int, *, gem: bool, bnneck: bool
) -> Iterator[Entry]:
    """Lists a head; a parameter of its own comes before its modules', a classifier module after them."""
    dim = embedding_dim or width
    classifier = Entry(f"{name}.{era.classifier}", (classes, dim), _centred(0.05))
    if era.classifier == "weight":
        yield classifier
    if gem:
        yield Entry(f"{name}.pool_layer.p", (1,), _uniform(3.2, 3.9))
    if embedding_dim:
        yield _conv(f"{name}.bottleneck.0", dim, width, gain=0.7)
    if era.neck == "bnneck" and embedding_dim:
        yield from _norm(f"{name}.bottleneck.1", dim)
    if bnneck:
        neck = "bnneck" if era.neck == "bnneck" else f"bottleneck.{1 if embedding_dim else 0}"
        yield from _norm(f"{name}.{neck}", dim)
    if era.classifier != "weight":
        yield classifier


def _light_conv(name: str, channels: int) -> Iterator[Entry]:
    yield _conv(f"{name}.conv1", channels, channels, gain=0.7)
    yield _conv(f"{name}.conv2", channels, channels, 3, groups=channels)
    yield from _norm(f"{name}.bn", channels)


def _gate(name: str, channels: int) -> Iterator[Entry]:
    hidden = channels // 16
    for part, out, incoming in (("fc1", hidden, channels), ("fc2", channels, hidden)):
        yield Entry(f"{name}.{part}.weight", (out, incoming, 1, 1), _centred(2 * incoming**-0.5))
        yield Entry(f"{name}.{part}.bias", (out,), _centred(0.5))


def _osnet_block(name: str, incoming: int, out: int, *, in_after_sum: bool) -> Iterator[Entry]:
    middle = out // 4
    yield from _conv_bn(f"{name}.conv1", middle, incoming)
    yield from _light_conv(f"{name}.conv2a", middle)
    for letter, length in {"b": 2, "c": 3, "d": 4}.items():
        for i in range(length):
            yield from _light_conv(f"{name}.conv2{letter}.{i}", middle)
    yield from _gate(f"{name}.gate", middle)
    yield from _conv_bn(f"{name}.conv3", out, middle, 2 * SHRINK)
    if incoming != out:
        yield from _conv_bn(f"{name}.downsample", out, incoming, 0.7)
    if in_after_sum:
        yield from _instance_norm(f"{name}.IN", out)


def _osnet_ain_block(name: str, incoming: int, out: int, *, in_branch: bool) -> Iterator[Entry]:
    middle = out // 4
    yield from _conv_bn(f"{name}.conv1", middle, incoming)
    for t in range(4):
        for i in range(t + 1):
            yield from _light_conv(f"{name}.conv2.{t}.layers.{i}", middle)
    yield from _gate(f"{name}.gate", middle)
    if in_branch:
        yield _conv(f"{name}.conv3.conv", out, middle)
    else:
        yield from _conv_bn(f"{name}.conv3", out, middle, 2 * SHRINK)
    if incoming != out:
        yield from _conv_bn(f"{name}.downsample", out, incoming, 0.7)
    if in_branch:
        yield from _instance_norm(f"{name}.IN", out)


def _torchreid_fc(incoming: int, dim: int) -> Iterator[Entry]:
    yield from _linear("fc.0", dim, incoming)
    yield from _norm("fc.1", dim)
