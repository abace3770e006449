"""From a feature map to an embedding: pooling, BNneck and, while training, the identity classifier."""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from reidkit.architecture import HeadSpec


class GeneralizedMean(nn.Module):
    """GeM pooling: the mean of `x ** p` over all positions, to the power `1 / p`; 1 is the mean, infinity the maximum.

    The power runs in float32 whatever the autocast type: `x ** 3` overflows float16 above 40.
    Source: Radenovic et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019.
    """

    def __init__(self, p: float, *, learned: bool) -> None:
        super().__init__()
        self.p: float | nn.Parameter = nn.Parameter(torch.tensor([p])) if learned else p

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c 1 1"]:
        """Pools over positions; values below 1e-6 count as 1e-6."""
        with _without_autocast(x.device):
            powered = x.float().clamp(min=1e-6) ** self.p
            return powered.mean(dim=(2, 3), keepdim=True) ** (1.0 / self.p)


class AverageMax(nn.Module):
    """The sum of the mean and the maximum over all positions."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c 1 1"]:
        """Pools over positions."""
        return F.adaptive_avg_pool2d(x, 1) + F.adaptive_max_pool2d(x, 1)


class HeadOutputs(NamedTuple):
    """What a head gives to the losses.

    Attributes:
        pooled: before the neck, for metric losses.
        embedding: after the neck, for the classifier and the search.
        classifier: a row of weights for each training identity.
        whole: the head saw the whole picture, and not a stripe of it.
    """

    pooled: Float[Tensor, "n channels"]
    embedding: Float[Tensor, "n dim"]
    classifier: Float[Tensor, "identities dim"]
    whole: bool = True


class Head(nn.Module):
    """Pooling, an optional embedding layer and the BNneck; the classifier and the search see what comes after it.

    The neck is a batch normalisation whose bias stays 0 in training, and is kept as it is in weights that have one.
    All of it runs in float32 whatever the autocast type. Source: Luo et al., "Bag of Tricks and a Strong Baseline for
    Deep Person Re-identification", CVPRW 2019.

    Args:
        spec: of the head.
        inputs: channels of the feature map.
        identities: number of classes of the classifier; None builds none.

    Attributes:
        dim: width of an embedding.
    """

    def __init__(self, spec: HeadSpec, inputs: int, identities: int | None) -> None:
        super().__init__()
        self.dim = spec.embedding_dim or inputs
        self.pool_layer = _pooling(spec)
        layers: list[nn.Module] = []
        if spec.embedding_dim:
            layers.append(_embedding_layer(inputs, spec.embedding_dim, bias=spec.embedding_bias))
        if spec.neck:
            neck = nn.BatchNorm2d(self.dim)
            neck.bias.requires_grad_(False)
            layers.append(neck)
        if spec.relu:
            layers.append(nn.ReLU())
        self.bottleneck = nn.Sequential(*layers)
        self.weight = None if identities is None else nn.Parameter(torch.empty(identities, self.dim))
        if self.weight is not None:
            nn.init.normal_(self.weight, std=0.01)

    def forward(self, x: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n dim"]]:
        """The pooled features, for metric losses; and the embeddings."""
        with _without_autocast(x.device):
            pooled = self.pool_layer(x.float())
            return pooled.flatten(1), self.bottleneck(pooled).flatten(1)

    def training_outputs(self, x: Float[Tensor, "n c h w"], *, whole: bool = True) -> HeadOutputs:
        """What the losses see; the head must have been built with identities."""
        assert self.weight is not None, "a model built without identities has no classifier"
        pooled, embedding = self(x)
        return HeadOutputs(pooled, embedding, self.weight, whole)


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    # Tensors without values, which tell shapes and costs, know no autocast.
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def _embedding_layer(inputs: int, outputs: int, *, bias: bool) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, 1, bias=bias)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _pooling(spec: HeadSpec) -> nn.Module:
    match spec.pooling:
        case "average":
            return nn.AdaptiveAvgPool2d(1)
        case "max":
            return nn.AdaptiveMaxPool2d(1)
        case "average+max":
            return AverageMax()
        case "gem":
            return GeneralizedMean(spec.gem_p, learned=spec.gem_learned)
        case "own":
            return nn.Identity()
