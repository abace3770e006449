"""The omni-scale network, its three variants; names and layout are torchreid's.

Axes: `n` crops, `c` channels, `h` x `w` positions of a feature map.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from reidkit.architecture import OSNET_WIDTHS, OSNetSpec, OSNetVariant

InstanceNorm = Literal["none", "sum", "residual"]
"""Where a block has one: nowhere, behind its sum, or inside the residual in place of the batch normalisation."""

_SCALES = 4  # streams of a block, of 1 to 4 Lite layers: receptive fields of 3, 5, 7 and 9 pixels
_BOTTLENECK = 4
_GATE_RATIO = 16

_INSTANCE_NORMS: dict[OSNetVariant, tuple[tuple[InstanceNorm, InstanceNorm], ...]] = {
    "plain": (("none", "none"), ("none", "none"), ("none", "none")),
    "ibn": (("sum", "sum"), ("none", "none"), ("none", "none")),
    "ain": (("residual", "residual"), ("none", "residual"), ("residual", "none")),
}
"""For both blocks of stages 2 to 4. AIN's places were found by architecture search (Zhou et al., TPAMI 2021)."""


class ConvNorm(nn.Module):
    """A convolution without bias, a normalisation (named `bn` whatever its kind) and a ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        norm: Literal["batch", "instance", "none"] = "batch",
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.bn = None
        if norm != "none":
            self.bn = nn.BatchNorm2d(outputs) if norm == "batch" else nn.InstanceNorm2d(outputs, affine=True)
        self.relu = nn.ReLU(inplace=True) if relu else None

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """The layer's output."""
        x = self.conv(x)
        if self.bn is not None:
            x = self.bn(x)
        return x if self.relu is None else self.relu(x)


class LiteConv(nn.Module):
    """Lite 3x3: a linear 1x1 convolution, then one of 3x3 on each channel alone, normalised, with a ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The layer's output, of the size of its input."""
        return self.relu(self.bn(self.conv2(self.conv1(x))))


class LiteStream(nn.Module):
    """Lite layers in a row, under the names of the AIN variant."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(LiteConv(channels) for _ in range(depth)))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The last layer's output."""
        return self.layers(x)


class ChannelGate(nn.Module):
    """Weighs every channel by a number from 0 to 1 that two layers find from the mean over all positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // _GATE_RATIO, 1)
        self.fc2 = nn.Conv2d(channels // _GATE_RATIO, channels, 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """The weighted feature map."""
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))))


class OmniScaleBlock(nn.Module):
    """A residual of four streams that see 3, 5, 7 and 9 pixels, summed through one gate that they share.

    Args:
        inputs: channels that come in.
        outputs: channels that go out; a quarter of them inside.
        instance_norm: where it stands.
        listed: whether the streams are `conv2.{0..3}`, as in the AIN variant, or `conv2{a..d}`.
    """

    def __init__(self, inputs: int, outputs: int, *, instance_norm: InstanceNorm, listed: bool) -> None:
        super().__init__()
        width = outputs // _BOTTLENECK
        self.listed = listed
        self.conv1 = ConvNorm(inputs, width)
        if listed:
            self.conv2 = nn.ModuleList(LiteStream(width, depth) for depth in range(1, _SCALES + 1))
        else:
            self.conv2a = LiteConv(width)
            self.conv2b = nn.Sequential(*(LiteConv(width) for _ in range(2)))
            self.conv2c = nn.Sequential(*(LiteConv(width) for _ in range(3)))
            self.conv2d = nn.Sequential(*(LiteConv(width) for _ in range(4)))
        self.gate = ChannelGate(width)
        self.conv3 = ConvNorm(width, outputs, norm="none" if instance_norm == "residual" else "batch", relu=False)
        self.downsample = None if inputs == outputs else ConvNorm(inputs, outputs, relu=False)
        self.IN = None if instance_norm == "none" else nn.InstanceNorm2d(outputs, affine=True)
        self.instance_norm = instance_norm

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h w"]:
        """The block's output, after the last ReLU."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.conv1(x)
        first, *others = [self.gate(stream(x)) for stream in self._streams()]
        for other in others:
            first = first + other
        x = self.conv3(first)
        if self.IN is not None:
            x = self.IN(x) + shortcut if self.instance_norm == "residual" else self.IN(x + shortcut)
        else:
            x = x + shortcut
        return F.relu(x)

    def _streams(self) -> Iterator[nn.Module]:
        yield from self.conv2 if self.listed else (self.conv2a, self.conv2b, self.conv2c, self.conv2d)


class OSNet(nn.Module):
    """The convolutional trunk: a normalised picture in, the last feature map (stride 16) out.

    torchreid's average pooling, `fc` and classifier are not here: they are `Head(pooling="average", embedding_dim=512,
    embedding_bias=True, relu=True)`. Its IBN variant normalises by instance in the stem and stage 2; AIN in the stem
    and in the blocks that a search chose. Source: Zhou et al., "Omni-Scale Feature Learning for Person
    Re-Identification", ICCV 2019; "Learning Generalisable Omni-Scale Representations", TPAMI 2021.

    Attributes:
        dim: channels of the last feature map.
    """

    def __init__(self, spec: OSNetSpec) -> None:
        super().__init__()
        self.dim = spec.dim
        self.listed = spec.variant == "ain"
        widths = OSNET_WIDTHS[spec.width]
        self.conv1 = ConvNorm(3, widths[0], 7, 2, norm="batch" if spec.variant == "plain" else "instance")
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        stages = [
            [
                OmniScaleBlock(inputs, outputs, instance_norm=places[0], listed=self.listed),
                OmniScaleBlock(outputs, outputs, instance_norm=places[1], listed=self.listed),
            ]
            for inputs, outputs, places in zip(widths[:3], widths[1:], _INSTANCE_NORMS[spec.variant], strict=True)
        ]
        shrink2, shrink3 = (nn.Sequential(ConvNorm(width, width), nn.AvgPool2d(2, 2)) for width in widths[1:3])
        if self.listed:
            self.conv2, self.pool2 = nn.Sequential(*stages[0]), shrink2
            self.conv3, self.pool3 = nn.Sequential(*stages[1]), shrink3
        else:
            self.conv2 = nn.Sequential(*stages[0], shrink2)
            self.conv3 = nn.Sequential(*stages[1], shrink3)
        self.conv4 = nn.Sequential(*stages[2])
        self.conv5 = ConvNorm(widths[3], widths[3])
        self.apply(_initialise)

    def forward(self, x: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n c h w"]:
        """The last feature map."""
        x = self.conv2(self.maxpool(self.conv1(x)))
        if self.listed:
            x = self.pool2(x)
        x = self.conv3(x)
        if self.listed:
            x = self.pool3(x)
        return self.conv5(self.conv4(x))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
