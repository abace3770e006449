"""ResNet with IBN-a and b, squeeze and excitation, non-local blocks and pre-activation, as `Layers` calls.

The same networks as `models.resnet`, written without torch; names of weights are fast-reid's.
"""

from reidkit.architecture import NON_LOCAL_BLOCKS, STAGE_BLOCKS, STAGE_WIDTHS, ResNetSpec
from reidkit.deploy.network.blocks import channel_gate, conv_ibn, conv_instance_norm, conv_norm, dense, instance_norm
from reidkit.deploy.network.layers import Kind, Layers, Value
from reidkit.deploy.network.weights import Weights

STEM_WIDTH = 64
_SE_RATIO = 16


def resnet(layers: Layers[Value], weights: Weights, x: Value, spec: ResNetSpec, kind: Kind) -> Value:
    """From the network's input to the last feature map."""
    x = stem(layers, weights, x, spec, conv="backbone.conv1", norm="backbone.bn1")
    for number in range(1, 5):
        stride = {1: 1, 4: spec.last_stride}.get(number, 2)
        attended = 0
        if spec.non_local != "none":
            attended = NON_LOCAL_BLOCKS[spec.depth][number - 1]
        blocks = STAGE_BLOCKS[spec.depth][number - 1]
        for index in range(blocks):
            name = f"backbone.layer{number}.{index}"
            x = block(layers, weights, x, spec, name, number, index, kind, stride=stride if index == 0 else 1)
            if index >= blocks - attended:
                x = non_local(layers, weights, x, spec, f"backbone.NL_{number}.{index - (blocks - attended)}")
    return layers.relu(x) if spec.preactivation else x


def stem(layers: Layers[Value], weights: Weights, x: Value, spec: ResNetSpec, *, conv: str, norm: str) -> Value:
    """The first convolution and the max-pooling."""
    normed = conv_instance_norm if spec.ibn == "b" else conv_norm
    x = layers.relu(normed(layers, weights, x, conv, norm, STEM_WIDTH, 7, stride=2))
    ceil = spec.max_pool == "ceil"
    return layers.max_pool(x, padding=0 if ceil else 1, ceil=ceil)


def block(
    layers: Layers[Value],
    weights: Weights,
    x: Value,
    spec: ResNetSpec,
    name: str,
    number: int,
    index: int,
    kind: Kind,
    *,
    stride: int,
) -> Value:
    """A residual block: number `index` of stage `number`, which decide where IBN stands."""
    if spec.preactivation:
        x = layers.relu(x)
    width = STAGE_WIDTHS[number - 1]
    outputs = width * (4 if spec.bottleneck else 1)
    shortcut = x
    if stride != 1 or layers.shape(x)[0] != outputs:
        downsample = f"{name}.downsample"
        shortcut = conv_norm(layers, weights, x, f"{downsample}.0", f"{downsample}.1", outputs, 1, stride=stride)
    first = conv_ibn if spec.ibn == "a" and number <= 3 else conv_norm
    if spec.bottleneck:
        x = layers.relu(first(layers, weights, x, f"{name}.conv1", f"{name}.bn1", width, 1))
        x = layers.relu(conv_norm(layers, weights, x, f"{name}.conv2", f"{name}.bn2", width, 3, stride=stride))
        x = conv_norm(layers, weights, x, f"{name}.conv3", f"{name}.bn3", outputs, 1)
    else:
        x = layers.relu(first(layers, weights, x, f"{name}.conv1", f"{name}.bn1", width, 3, stride=stride))
        x = conv_norm(layers, weights, x, f"{name}.conv2", f"{name}.bn2", outputs, 3)
    if spec.se:
        gates = f"{name}.se.fc.0", f"{name}.se.fc.2"
        x = channel_gate(layers, weights, x, *gates, outputs // _SE_RATIO, kind, bias=False, matrix=True)
    x = layers.add(x, shortcut)
    if spec.ibn == "b" and number <= 2 and index == STAGE_BLOCKS[spec.depth][number - 1] - 1:
        x = instance_norm(layers, weights, x, f"{name}.IN", outputs)
    return x if spec.preactivation else layers.relu(x)


def non_local(layers: Layers[Value], weights: Weights, x: Value, spec: ResNetSpec, name: str) -> Value:
    """Position attention, added to the map."""
    channels, _, _ = layers.shape(x)
    inner = 1 if spec.non_local == "one" else channels // 2
    g, theta, phi = (dense(layers, weights, x, f"{name}.{part}", inner, bias=True) for part in ("g", "theta", "phi"))
    y = layers.attend(g, theta, phi)
    return layers.add(conv_norm(layers, weights, y, f"{name}.W.0", f"{name}.W.1", channels, 1, bias=True), x)
