"""What re-identification puts into a residual network: halved normalisation, channel attention, position attention.

Axes: `n` crops, `c` channels, `h` x `w` positions of a feature map.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

_SE_RATIO = 16


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


class SqueezeExcitation(nn.Module):
    """Channel attention: the mean over all positions decides, through two layers, how much of each channel passes.

    Source: Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018; neither layer has a bias, as in fast-reid.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // _SE_RATIO
        self.fc = nn.Sequential(
            nn.Linear(channels, inner, bias=False), nn.ReLU(), nn.Linear(inner, channels, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Weighs every channel by a number from 0 to 1."""
        return x * self.fc(x.mean(dim=(2, 3)))[:, :, None, None]


class NonLocal(nn.Module):
    """Position attention without a softmax: every position gets a mean of all, weighed by the product of two features.

    It starts as the identity: the scale and bias of its last normalisation are 0.
    Source: Wang et al., "Non-local Neural Networks", CVPR 2018, the dot-product version.

    Args:
        channels: of the feature map.
        inner: channels of the three projections.
    """

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.g = nn.Conv2d(channels, inner, 1)
        self.theta = nn.Conv2d(channels, inner, 1)
        self.phi = nn.Conv2d(channels, inner, 1)
        last = nn.BatchNorm2d(channels)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.W = nn.Sequential(nn.Conv2d(inner, channels, 1), last)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """`W(y) + x`, where y at position i is the mean over all j of `(theta_i . phi_j) g_j`."""
        g, theta, phi = self.g(x).flatten(2), self.theta(x).flatten(2), self.phi(x).flatten(2)
        # Without a softmax the products may be taken in either order; this one needs no h w x h w table.
        y = (g @ (phi / phi.shape[2]).transpose(1, 2)) @ theta
        return self.W(y.unflatten(2, x.shape[2:])) + x
