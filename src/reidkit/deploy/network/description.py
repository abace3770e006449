"""A whole known network, from uint8 crops to embeddings, told to a writer."""

from collections.abc import Mapping

import numpy as np

from reidkit.architecture import MGN_PARTS, STAGE_BLOCKS, HeadSpec, ModelSpec, OSNetSpec, ResNetSpec, in_words
from reidkit.deploy.network.blocks import dense
from reidkit.deploy.network.layers import Kind, Layers, Value
from reidkit.deploy.network.osnet import osnet
from reidkit.deploy.network.resnet import block, resnet, stem
from reidkit.deploy.network.shapes import ShapeLayers
from reidkit.deploy.network.weights import Weights
from reidkit.errors import InputError, ModelError
from reidkit.manifest import Cost
from reidkit.types import InputSpec


def write_network(
    layers: Layers[Value],
    spec: ModelSpec,
    input_: InputSpec,
    tensors: Mapping[str, np.ndarray],
    *,
    kind: Kind = "float32",
    source: str = "the file",
) -> None:
    """Writes a known network, pre-processing included.

    The weights are checked before the first layer is written.

    Args:
        layers: the writer.
        spec: of the network: a ResNet, one cut as MGN, or an OSNet.
        input_: size of the crops and pre-processing.
        tensors: weights by canonical name.
        kind: of the feature maps; input, statistics, pooling and everything behind the last map stay float32.
        source: what the weights come from, for the messages.

    Raises:
        ModelError: a network that has no description here; or lists weights that are missing, unexpected or misshaped.
        InputError: crops too small for the network.
    """
    weights = fit_weights(spec, input_, tensors, source=source)[0]
    _describe(layers, weights, spec, input_, kind)


def fit_weights(
    spec: ModelSpec, input_: InputSpec, tensors: Mapping[str, np.ndarray], *, source: str = "the file"
) -> tuple[Weights, Cost]:
    """The weights of a known network, all accounted for, and what it costs; nothing is written.

    Raises:
        ModelError, InputError: as `write_network`.
    """
    if not describable(spec):
        raise ModelError(
            f"There is no description of {in_words(spec)}",
            expected="a ResNet, MGN or OSNet",
            fix="build it from its ONNX graph: --via parser",
        )
    weights, shapes = Weights(tensors, source=source), ShapeLayers()
    with np.errstate(all="ignore"):  # of weights that may hold anything, until they are checked
        _describe(shapes, weights, spec, input_, "float32")
        weights.check()
    return weights, Cost(weights.parameters, shapes.multiply_adds)


def describable(spec: ModelSpec | None) -> bool:
    """Whether a network can be written here; foreign graphs and timm's are known by their ONNX graph alone."""
    return spec is not None and isinstance(spec.backbone, ResNetSpec | OSNetSpec)


def _describe(layers: Layers[Value], weights: Weights, spec: ModelSpec, input_: InputSpec, kind: Kind) -> None:
    x = layers.cast(layers.crops(input_), kind)
    if spec.branches == "mgn":
        assert isinstance(spec.backbone, ResNetSpec)
        layers.embeddings(_mgn(layers, weights, x, spec.backbone, spec.head, kind))
        return
    match spec.backbone:
        case ResNetSpec():
            x = resnet(layers, weights, x, spec.backbone, kind)
        case OSNetSpec():
            x = osnet(layers, weights, x, spec.backbone, kind)
    layers.embeddings(_head(layers, weights, x, spec.head, "heads"))


def _head(layers: Layers[Value], weights: Weights, x: Value, spec: HeadSpec, name: str) -> Value:
    """From the last feature map to the embedding, all of it in float32."""
    x = layers.cast(x, "float32")
    match spec.pooling:
        case "average":
            x = layers.mean(x)
        case "max":
            x = layers.maximum(x)
        case "average+max":
            x = layers.add(layers.mean(x), layers.maximum(x))
        case "gem":
            p = weights.exponent(f"{name}.pool_layer.p") if spec.gem_learned else spec.gem_p
            x = layers.gem(x, p)
    number = 0
    if spec.embedding_dim:
        x = dense(layers, weights, x, f"{name}.bottleneck.0", spec.embedding_dim, bias=spec.embedding_bias)
        number = 1
    if spec.neck:
        x = layers.scale(x, *weights.batch_norm(f"{name}.bottleneck.{number}", layers.shape(x)[0]))
    return layers.relu(x) if spec.relu else x


def _mgn(layers: Layers[Value], weights: Weights, x: Value, spec: ResNetSpec, head: HeadSpec, kind: Kind) -> Value:
    """The trunk to the first block of stage 3, three branches, and eight heads side by side."""
    x = stem(layers, weights, x, spec, conv="backbone.0", norm="backbone.1")
    for number, place in ((1, 4), (2, 5)):
        x = _stage(layers, weights, x, spec, f"backbone.{place}", number, kind, stride=min(number, 2))
    x = block(layers, weights, x, spec, "backbone.6", 3, 0, kind, stride=2)
    maps = {}
    for branch in ("b1", "b2", "b3"):
        y = _stage(layers, weights, x, spec, f"{branch}.0", 3, kind, stride=1, first=1)
        last_stride = spec.last_stride if branch == "b1" else 1
        maps[branch] = _stage(layers, weights, y, spec, f"{branch}.1", 4, kind, stride=last_stride)
    for branch, count in (("b2", 2), ("b3", 3)):
        for number, part in enumerate(_cut(layers, maps[branch], count), start=1):
            maps[f"{branch}{number}"] = part
    return layers.concat([_head(layers, weights, maps[part], head, f"{part}_head") for part in MGN_PARTS])


def _stage(
    layers: Layers[Value],
    weights: Weights,
    x: Value,
    spec: ResNetSpec,
    name: str,
    number: int,
    kind: Kind,
    *,
    stride: int,
    first: int = 0,
) -> Value:
    """Blocks `first` and on of a stage, numbered from 0 in their names."""
    for index in range(first, STAGE_BLOCKS[spec.depth][number - 1]):
        step = stride if index == 0 else 1
        x = block(layers, weights, x, spec, f"{name}.{index - first}", number, index, kind, stride=step)
    return x


def _cut(layers: Layers[Value], x: Value, count: int) -> list[Value]:
    """Parts from top to bottom, all of the same height but for the last, which may be lower."""
    _, height, _ = layers.shape(x)
    step = -(-height // count)
    starts = range(0, height, step)
    if len(starts) != count:
        raise InputError(
            "The crops are too low for MGN",
            got=f"a last feature map of height {height}",
            expected=f"one that can be cut in {count}",
            fix="take higher crops, such as 384 x 128",
        )
    return [layers.rows(x, start, min(start + step, height)) for start in starts]
