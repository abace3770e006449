"""ResNet backbones for re-identification; names and layout are fast-reid's.

Axes: `n` crops, `c` channels, `h` x `w` positions of a feature map.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from reidkit.architecture import NON_LOCAL_BLOCKS, STAGE_BLOCKS, STAGE_WIDTHS, ResNetSpec
from reidkit.models.blocks import InstanceBatchNorm, NonLocal, SqueezeExcitation

_STEM_WIDTH = 64


class ResidualBlock(nn.Module):
    """Convolutions and a shortcut (He et al., CVPR 2016): two of 3x3, or the bottleneck of 1x1, 3x3 and 1x1.

    A bottleneck's stride sits on its 3x3 convolution, as in torchvision.

    Args:
        spec: of the network.
        inputs: channels that come in.
        width: channels inside; a bottleneck gives out four times as many.
        stride: 1 or 2.
        halved: IBN-a in place of the first normalisation.
        instance_norm: IBN-b's normalisation of the sum.
    """

    def __init__(
        self, spec: ResNetSpec, inputs: int, width: int, stride: int, *, halved: bool, instance_norm: bool
    ) -> None:
        super().__init__()
        outputs = width * _expansion(spec)
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False) if spec.bottleneck else _conv3x3(inputs, width, stride)
        self.bn1 = InstanceBatchNorm(width) if halved else nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, stride if spec.bottleneck else 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False) if spec.bottleneck else None
        self.bn3 = nn.BatchNorm2d(outputs) if spec.bottleneck else None
        self.relu = nn.ReLU(inplace=True)
        self.se = SqueezeExcitation(outputs) if spec.se else None
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.IN = nn.InstanceNorm2d(outputs, affine=True) if instance_norm else None
        self.preactivation = spec.preactivation

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """The block's output, after the last ReLU; with pre-activation before it, as the next block begins with it."""
        if self.preactivation:
            x = F.relu(x)
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.conv3 is not None and self.bn3 is not None:
            x = self.bn3(self.conv3(self.relu(x)))
        if self.se is not None:
            x = self.se(x)
        x = x + shortcut
        if self.IN is not None:
            x = self.IN(x)
        return x if self.preactivation else self.relu(x)


class ResNet(nn.Module):
    """The convolutional trunk: a normalised picture in, the last feature map out (stride 16, or 32 with last_stride 2).

    Pre-activation moves every block's last ReLU to the beginning of the next block, and adds one at the end. As each of
    them still stands between the same two sums, the last feature map of the same weights stays the same; only what the
    stages hand on differs, by its negative part.

    Attributes:
        dim: channels of the last feature map.
    """

    def __init__(self, spec: ResNetSpec) -> None:
        super().__init__()
        self.dim = spec.dim
        self.preactivation = spec.preactivation
        self.conv1 = nn.Conv2d(3, _STEM_WIDTH, 7, 2, 3, bias=False)
        self.bn1 = nn.InstanceNorm2d(_STEM_WIDTH, affine=True) if spec.ibn == "b" else nn.BatchNorm2d(_STEM_WIDTH)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True) if spec.max_pool == "ceil" else nn.MaxPool2d(3, 2, 1)
        self.layer1 = stage(spec, 1, stride=1)
        self.layer2 = stage(spec, 2, stride=2)
        self.layer3 = stage(spec, 3, stride=2)
        self.layer4 = stage(spec, 4, stride=spec.last_stride)
        self.apply(_initialise)
        # After the initialisation: PyTorch's own is right for these, whose one output would make the other's too wide.
        self.NL_2 = _non_local(spec, 2)
        self.NL_3 = _non_local(spec, 3)

    def forward(self, x: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n c h w"]:
        """The last feature map."""
        x = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        x = _interleave(self.layer2, self.NL_2, x)
        x = _interleave(self.layer3, self.NL_3, x)
        x = self.layer4(x)
        return F.relu(x) if self.preactivation else x


def stage(spec: ResNetSpec, number: int, *, stride: int) -> nn.Sequential:
    """The residual blocks of stage 1 to 4, with PyTorch's initial weights.

    Args:
        spec: of the network.
        number: of the stage, from 1.
        stride: of its first block.
    """
    width, blocks = STAGE_WIDTHS[number - 1], STAGE_BLOCKS[spec.depth][number - 1]
    halved = spec.ibn == "a" and number <= 3
    before = _STEM_WIDTH if number == 1 else STAGE_WIDTHS[number - 2] * _expansion(spec)

    def block(index: int) -> ResidualBlock:
        inputs, step = (before, stride) if index == 0 else (width * _expansion(spec), 1)
        instance_norm = spec.ibn == "b" and number <= 2 and index == blocks - 1
        return ResidualBlock(spec, inputs, width, step, halved=halved, instance_norm=instance_norm)

    return nn.Sequential(*(block(index) for index in range(blocks)))


def _non_local(spec: ResNetSpec, number: int) -> nn.ModuleList:
    if spec.non_local == "none":
        return nn.ModuleList()
    channels = STAGE_WIDTHS[number - 1] * _expansion(spec)
    inner = 1 if spec.non_local == "one" else channels // 2
    return nn.ModuleList(NonLocal(channels, inner) for _ in range(NON_LOCAL_BLOCKS[spec.depth][number - 1]))


def _interleave(
    blocks: nn.Sequential, attention: nn.ModuleList, x: Float[Tensor, "n c h w"]
) -> Float[Tensor, "n c2 h2 w2"]:
    """Runs a stage whose last blocks are each followed by one non-local block."""
    first = len(blocks) - len(attention)
    for index, block in enumerate(blocks):
        x = block(x)
        if index >= first:
            x = attention[index - first](x)
    return x


def _expansion(spec: ResNetSpec) -> int:
    return 4 if spec.bottleneck else 1


def _conv3x3(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
