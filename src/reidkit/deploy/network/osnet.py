"""The omni-scale network, its three variants, as `Layers` calls: the same as `models.osnet`, written without torch."""

from reidkit.architecture import OSNET_WIDTHS, OSNetSpec
from reidkit.deploy.network.blocks import channel_gate, conv_instance_norm, conv_norm, instance_norm
from reidkit.deploy.network.layers import Kind, Layers, Value
from reidkit.deploy.network.weights import Weights

_SCALES = 4
_BOTTLENECK = 4
_GATE_RATIO = 16
# Where both blocks of stages 2 to 4 normalise by instance: nowhere, behind the sum, or inside the residual.
_INSTANCE_NORMS = {
    "plain": (("none", "none"), ("none", "none"), ("none", "none")),
    "ibn": (("sum", "sum"), ("none", "none"), ("none", "none")),
    "ain": (("residual", "residual"), ("none", "residual"), ("residual", "none")),
}


def osnet(layers: Layers[Value], weights: Weights, x: Value, spec: OSNetSpec, kind: Kind) -> Value:
    """From the network's input to the last feature map."""
    widths = OSNET_WIDTHS[spec.width]
    listed = spec.variant == "ain"
    normed = conv_norm if spec.variant == "plain" else conv_instance_norm
    x = normed(layers, weights, x, "backbone.conv1.conv", "backbone.conv1.bn", widths[0], 7, stride=2)
    x = layers.max_pool(layers.relu(x), padding=1, ceil=False)
    for number, (width, places) in enumerate(zip(widths[1:], _INSTANCE_NORMS[spec.variant], strict=True), start=2):
        for index, place in enumerate(places):
            x = _block(layers, weights, x, f"backbone.conv{number}.{index}", width, kind, place=place, listed=listed)
        if number < 4:
            shrink = f"backbone.pool{number}.0" if listed else f"backbone.conv{number}.2.0"
            x = layers.halve(_conv(layers, weights, x, shrink, width))
    return _conv(layers, weights, x, "backbone.conv5", widths[3])


def _conv(layers: Layers[Value], weights: Weights, x: Value, name: str, outputs: int) -> Value:
    return layers.relu(conv_norm(layers, weights, x, f"{name}.conv", f"{name}.bn", outputs, 1))


def _block(
    layers: Layers[Value], weights: Weights, x: Value, name: str, outputs: int, kind: Kind, *, place: str, listed: bool
) -> Value:
    """Four streams that see 3, 5, 7 and 9 pixels, summed through one gate that they share, and the shortcut."""
    width = outputs // _BOTTLENECK
    shortcut = x
    if layers.shape(x)[0] != outputs:
        shortcut = conv_norm(layers, weights, x, f"{name}.downsample.conv", f"{name}.downsample.bn", outputs, 1)
    x = _conv(layers, weights, x, f"{name}.conv1", width)
    total = None
    for depth in range(1, _SCALES + 1):
        y = _stream(layers, weights, x, name, width, depth, listed=listed)
        gates = f"{name}.gate.fc1", f"{name}.gate.fc2"
        y = channel_gate(layers, weights, y, *gates, width // _GATE_RATIO, kind, bias=True)
        total = y if total is None else layers.add(total, y)
    assert total is not None
    if place == "residual":
        kernel = weights.take(f"{name}.conv3.conv.weight", outputs, width, 1, 1)
        x = instance_norm(layers, weights, layers.conv(total, kernel), f"{name}.IN", outputs)
        return layers.relu(layers.add(x, shortcut))
    x = conv_norm(layers, weights, total, f"{name}.conv3.conv", f"{name}.conv3.bn", outputs, 1)
    x = layers.add(x, shortcut)
    if place == "sum":
        x = instance_norm(layers, weights, x, f"{name}.IN", outputs)
    return layers.relu(x)


def _stream(
    layers: Layers[Value], weights: Weights, x: Value, name: str, width: int, depth: int, *, listed: bool
) -> Value:
    """So many Lite layers: a linear 1 x 1 convolution, then 3 x 3 on each channel alone."""
    for index in range(depth):
        if listed:
            lite = f"{name}.conv2.{depth - 1}.layers.{index}"
        else:
            lite = f"{name}.conv2{'abcd'[depth - 1]}" + (f".{index}" if depth > 1 else "")
        x = layers.conv(x, weights.take(f"{lite}.conv1.weight", width, width, 1, 1))
        x = layers.relu(conv_norm(layers, weights, x, f"{lite}.conv2", f"{lite}.bn", width, 3, groups=width))
    return x
