"""Metric losses between the crops of a batch.

A crop without another of its identity in the batch, or without anybody else, says nothing and is left out of the mean;
where no crop is left, the loss is 0.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor
from torch.nn import functional as F

from reidkit.train.losses.similarity import MASKED, cosines, inner_products


class _Pairs(NamedTuple):
    positive: Bool[Tensor, "n n"]
    negative: Bool[Tensor, "n n"]
    usable: Bool[Tensor, " n"]


def pairwise_euclidean(embeddings: Float[Tensor, "n dim"]) -> Float32[Tensor, "n n"]:
    """Euclidean distances of every pair; the square root keeps a finite slope where two embeddings coincide.

    They are taken around the mean of the batch, which changes none of them: the squares whose difference they are stay
    small, and float32 has digits left for a short distance far from the origin.
    """
    x = embeddings.float()
    x = x - x.detach().mean(dim=0)
    squares = x.square().sum(dim=1)
    distances = squares[:, None] + squares[None, :] - 2.0 * inner_products(x, x)
    return distances.clamp(min=1e-12).sqrt()


def batch_hard_triplet(
    embeddings: Float[Tensor, "n dim"], labels: Int[Tensor, " n"], *, margin: float | Literal["soft"]
) -> Float32[Tensor, ""]:
    """Triplet loss over each crop's farthest positive and nearest negative of the batch, in Euclidean distance.

    With a margin `max(0, d(a, p) - d(a, n) + margin)`; the soft margin is `log(1 + exp(d(a, p) - d(a, n)))`.
    Source: Hermans et al., "In Defense of the Triplet Loss for Person Re-Identification", 2017.
    """
    distances = pairwise_euclidean(embeddings)
    pairs = _pairs(labels)
    farthest_positive = distances.masked_fill(~pairs.positive, 0.0).amax(dim=1)
    nearest_negative = distances.masked_fill(~pairs.negative, torch.inf).amin(dim=1)
    gap = (farthest_positive - nearest_negative).masked_fill(~pairs.usable, 0.0)
    return _mean(F.softplus(gap) if margin == "soft" else F.relu(gap + margin), pairs.usable)


def weighted_triplet(embeddings: Float[Tensor, "n dim"], labels: Int[Tensor, " n"]) -> Float32[Tensor, ""]:
    """Weighted regularisation triplet: all positives and negatives of a crop, weighed by how hard they are.

    The mean of `log(1 + exp(sum_p w_p d(a, p) - sum_n w_n d(a, n)))`, where `w_p` is the softmax of the distances to
    positives, and `w_n` that of the negated distances to negatives. The weights have gradients, as in fast-reid.
    Source: Ye et al., "Deep Learning for Person Re-identification: A Survey and Outlook" (AGW), TPAMI 2021.
    """
    distances = pairwise_euclidean(embeddings)
    pairs = _pairs(labels)
    positive_weights = distances.masked_fill(~pairs.positive, MASKED).softmax(dim=1)
    negative_weights = (-distances).masked_fill(~pairs.negative, MASKED).softmax(dim=1)
    gap = ((positive_weights - negative_weights) * distances).sum(dim=1)
    return _mean(F.softplus(gap), pairs.usable)


def circle_loss(
    embeddings: Float[Tensor, "n dim"], labels: Int[Tensor, " n"], *, scale: float, margin: float
) -> Float32[Tensor, ""]:
    """Circle loss between the pairs of a batch: each cosine counts by how far it still is from where it should be.

    The mean of `log(1 + sum_n exp(scale a_n (s_n - margin)) sum_p exp(-scale a_p (s_p - 1 + margin)))`, where
    `a_p = [1 + margin - s_p]` and `a_n = [s_n + margin]` are weights, not below 0, that carry no gradient.
    Source: Sun et al., "Circle Loss: A Unified Perspective of Pair Similarity Optimization", CVPR 2020.
    """
    similarity = cosines(embeddings, embeddings)
    fixed = similarity.detach()
    pairs = _pairs(labels)
    positive = -scale * (1 + margin - fixed).clamp(min=0) * (similarity - 1 + margin)
    negative = scale * (fixed + margin).clamp(min=0) * (similarity - margin)
    pull = positive.masked_fill(~pairs.positive, MASKED).logsumexp(dim=1)
    push = negative.masked_fill(~pairs.negative, MASKED).logsumexp(dim=1)
    return _mean(F.softplus(pull + push), pairs.usable)


def supervised_contrastive(
    embeddings: Float[Tensor, "n dim"], labels: Int[Tensor, " n"], *, temperature: float
) -> Float32[Tensor, ""]:
    """Supervised contrastive loss: every positive as the one to be found among all other crops of the batch.

    `L_out`: the mean over a crop's positives of `-log(exp(s_p / temperature) / sum_others exp(s / temperature))`, with
    cosines `s`. The paper adds up the crops of a batch; this is their mean.
    Source: Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020.
    """
    logits = cosines(embeddings, embeddings) / temperature
    pairs = _pairs(labels)
    others = pairs.positive | pairs.negative
    log_probabilities = logits - logits.masked_fill(~others, MASKED).logsumexp(dim=1, keepdim=True)
    found = log_probabilities.masked_fill(~pairs.positive, 0.0).sum(dim=1)
    return _mean(-found / pairs.positive.sum(dim=1).clamp(min=1), pairs.usable)


def _pairs(labels: Int[Tensor, " n"]) -> _Pairs:
    same = labels[:, None] == labels[None, :]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return _Pairs(positive, ~same, positive.any(dim=1) & ~same.all(dim=1))


def _mean(losses: Float[Tensor, " n"], usable: Bool[Tensor, " n"]) -> Float[Tensor, ""]:
    # Filled, and not chosen with `torch.where`, which would make a tensor of its 0 at each call.
    return losses.masked_fill(~usable, 0.0).sum() / usable.sum().clamp(min=1)
