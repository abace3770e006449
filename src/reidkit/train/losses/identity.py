"""Classification of the training identities: cross-entropy, and scores with a margin to put into it.

A margin makes the score of the right identity harder to reach than it will be in a search. Each kind takes the cosines
between embeddings and the classifier's rows, and gives scaled logits.
"""

import math

import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor
from torch.nn import functional as F

_SMALLEST_SQUARED_SINE = 1e-6


def identity_loss(
    logits: Float[Tensor, "n identities"], labels: Int[Tensor, " n"], *, smoothing: float
) -> Float32[Tensor, ""]:
    """Cross-entropy with label smoothing: the target keeps `1 - smoothing`, the other identities share the rest.

    As in fast-reid the smoothed part goes to the other C - 1 classes; PyTorch's own spreads it over all C.
    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016.
    """
    log_probabilities = F.log_softmax(logits.float(), dim=1)
    others = max(logits.shape[1] - 1, 1)
    target = log_probabilities.gather(1, labels[:, None]).squeeze(1)
    rest = log_probabilities.sum(dim=1) - target
    return -((1 - smoothing) * target + smoothing / others * rest).mean()


def cosface_logits(
    cosines: Float[Tensor, "n identities"], labels: Int[Tensor, " n"], *, scale: float, margin: float
) -> Float32[Tensor, "n identities"]:
    """`scale * (cos - margin)` for the right identity, `scale * cos` for the others.

    AM-softmax is the same function, published beside it: Wang et al., "Additive Margin Softmax for Face Verification",
    IEEE Signal Processing Letters 2018.
    Source: Wang et al., "CosFace: Large Margin Cosine Loss for Deep Face Recognition", CVPR 2018.
    """
    cosines = cosines.float()
    return scale * torch.where(_is_target(cosines, labels), cosines - margin, cosines)


def arcface_logits(
    cosines: Float[Tensor, "n identities"], labels: Int[Tensor, " n"], *, scale: float, margin: float
) -> Float32[Tensor, "n identities"]:
    """`scale * cos(angle + margin)` for the right identity, `scale * cos(angle)` for the others.

    Where angle + margin passes pi the cosine would rise again and reward what is farther off. From there on the right
    identity has `cos(angle) - margin * sin(margin)`, as in the authors' code, and so its score falls all the way.
    The sine is taken as at least 0.001: next to an angle of 0 its slope has no limit.
    Source: Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019.

    Args:
        cosines: between embeddings and the classifier's rows.
        labels: the right identities.
        scale: of the logits.
        margin: in radians, from 0 to pi / 2.
    """
    cosines = cosines.float()
    sines = (1 - cosines.square()).clamp(min=_SMALLEST_SQUARED_SINE).sqrt()
    turned = cosines * math.cos(margin) - sines * math.sin(margin)
    beyond = cosines - margin * math.sin(margin)
    target = torch.where(cosines > -math.cos(margin), turned, beyond)
    return scale * torch.where(_is_target(cosines, labels), target, cosines)


def circle_logits(
    cosines: Float[Tensor, "n identities"], labels: Int[Tensor, " n"], *, scale: float, margin: float
) -> Float32[Tensor, "n identities"]:
    """Circle loss with class labels: each cosine counts by how far it still is from where it should be.

    The right identity has `scale * [1 + margin - cos] * (cos - 1 + margin)`, the others
    `scale * [cos + margin] * (cos - margin)`. The brackets are weights, not below 0, and carry no gradient.
    Source: Sun et al., "Circle Loss: A Unified Perspective of Pair Similarity Optimization", CVPR 2020, whose loss is
    the cross-entropy of these logits.
    """
    cosines = cosines.float()
    fixed = cosines.detach()
    target = (1 + margin - fixed).clamp(min=0) * (cosines - 1 + margin)
    others = (fixed + margin).clamp(min=0) * (cosines - margin)
    return scale * torch.where(_is_target(cosines, labels), target, others)


def _is_target(scores: Float[Tensor, "n identities"], labels: Int[Tensor, " n"]) -> Bool[Tensor, "n identities"]:
    return labels[:, None] == torch.arange(scores.shape[1], device=scores.device)
