"""From a feature map to an embedding: pooling, BNneck and, while training, the identity classifier."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from reidkit.architecture import Pooling, ResNetSpec


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
        with torch.autocast(x.device.type, enabled=False):
            powered = x.float().clamp(min=1e-6) ** self.p
            return powered.mean(dim=(2, 3), keepdim=True) ** (1.0 / self.p)


class Head(nn.Module):
    """Pooling and the BNneck: metric losses see the embedding before it, the classifier and the search after it.

    The neck is a batch normalisation whose bias stays 0. Source: Luo et al., "Bag of Tricks and a Strong Baseline for
    Deep Person Re-identification", CVPRW 2019.
    """

    def __init__(self, spec: ResNetSpec, identities: int | None) -> None:
        super().__init__()
        self.pool_layer = _pooling(spec.pooling, spec.gem_p, learned=spec.gem_learned)
        neck = nn.BatchNorm2d(spec.dim)
        neck.bias.requires_grad_(False)
        self.bottleneck = nn.Sequential(neck)
        self.weight = None if identities is None else nn.Parameter(torch.empty(identities, spec.dim))
        if self.weight is not None:
            nn.init.normal_(self.weight, std=0.01)

    def forward(self, x: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n dim"], Float[Tensor, "n dim"]]:
        """Embeddings before and after the neck."""
        pooled = self.pool_layer(x)
        return pooled.flatten(1), self.bottleneck(pooled).flatten(1)

    def logits(self, embeddings: Float[Tensor, "n dim"]) -> Float[Tensor, "n identities"]:
        """Scores of each training identity, from embeddings after the neck."""
        assert self.weight is not None, "a model built without identities has no classifier"
        return F.linear(embeddings, self.weight)


def _pooling(kind: Pooling, p: float, *, learned: bool) -> nn.Module:
    match kind:
        case "average":
            return nn.AdaptiveAvgPool2d(1)
        case "max":
            return nn.AdaptiveMaxPool2d(1)
        case "gem":
            return GeneralizedMean(p, learned=learned)
