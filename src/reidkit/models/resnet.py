"""ResNet backbones for re-identification, with instance-batch normalisation; names and layout are fast-reid's.

Axes: `n` crops, `c` channels, `h` x `w` positions of a feature map.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reidkit.architecture import STAGE_BLOCKS, STAGE_WIDTHS, ResNetSpec


class InstanceBatchNorm(nn.Module):
    """IBN-a: affine instance normalisation of the first half of the channels, batch normalisation of the rest.

    Instance statistics take out what a camera adds (contrast, cast); batch statistics keep what tells people apart.
    Source: Pan et al., "Two at Once", ECCV 2018.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.widths = [channels // 2, channels - channels // 2]
        self.IN = nn.InstanceNorm2d(self.widths[0], affine=True)
        self.BN = nn.BatchNorm2d(self.widths[1])

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Normalises both halves."""
        first, rest = torch.split(x, self.widths, dim=1)
        return torch.cat([self.IN(first.contiguous()), self.BN(rest.contiguous())], dim=1)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., CVPR 2016)."""

    def __init__(self, inputs: int, width: int, stride: int, *, ibn: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = InstanceBatchNorm(width) if ibn else nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != width:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """The block's output, after the last ReLU."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNet(nn.Module):
    """The convolutional trunk: a normalised picture in, the last feature map out (stride 16, or 32 with last_stride 2).

    The stem pools 3x3 with stride 2, no padding and ceiling mode, as fast-reid does since November 2020.
    """

    def __init__(self, spec: ResNetSpec) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.layer1 = _stage(spec, 1, inputs=64, stride=1)
        self.layer2 = _stage(spec, 2, inputs=STAGE_WIDTHS[0], stride=2)
        self.layer3 = _stage(spec, 3, inputs=STAGE_WIDTHS[1], stride=2)
        self.layer4 = _stage(spec, 4, inputs=STAGE_WIDTHS[2], stride=spec.last_stride)
        self.apply(_initialise)

    def forward(self, x: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n c h w"]:
        """The last feature map."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def _stage(spec: ResNetSpec, number: int, *, inputs: int, stride: int) -> nn.Sequential:
    width, blocks = STAGE_WIDTHS[number - 1], STAGE_BLOCKS[spec.depth][number - 1]
    ibn = spec.ibn == "a" and number < 4
    first = BasicBlock(inputs, width, stride, ibn=ibn)
    return nn.Sequential(first, *(BasicBlock(width, width, 1, ibn=ibn) for _ in range(blocks - 1)))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
