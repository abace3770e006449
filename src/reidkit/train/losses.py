"""Losses, as functions of a batch. Axes: `n` crops of the batch, `dim` embedding width, `identities` classes."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def identity_loss(
    logits: Float[Tensor, "n identities"], labels: Int[Tensor, " n"], *, smoothing: float = 0.1
) -> Float[Tensor, ""]:
    """Cross-entropy with label smoothing: the target keeps `1 - smoothing`, the other identities share the rest.

    As in fast-reid the smoothed part goes to the other C - 1 classes; PyTorch's own spreads it over all C.
    Source: Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016.
    """
    log_probabilities = F.log_softmax(logits.float(), dim=1)
    others = max(logits.shape[1] - 1, 1)
    target = log_probabilities.gather(1, labels[:, None]).squeeze(1)
    rest = log_probabilities.sum(dim=1) - target
    return -((1 - smoothing) * target + smoothing / others * rest).mean()


def batch_hard_triplet(
    embeddings: Float[Tensor, "n dim"], labels: Int[Tensor, " n"], *, margin: float | None = 0.3
) -> Float[Tensor, ""]:
    """Triplet loss over each crop's farthest positive and nearest negative of the batch, in Euclidean distance.

    With a margin: `max(0, d(a, p) - d(a, n) + margin)`; with None the soft margin `log(1 + exp(d(a, p) - d(a, n)))`.
    Crops whose batch holds no other crop of the identity, or nobody else, are left out of the mean.
    Source: Hermans et al., "In Defense of the Triplet Loss", 2017.
    """
    distances = pairwise_euclidean(embeddings)
    same = labels[:, None] == labels[None, :]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive = same & ~itself
    hardest_positive = distances.masked_fill(~positive, 0.0).amax(dim=1)
    hardest_negative = distances.masked_fill(same, torch.inf).amin(dim=1)
    usable = positive.any(dim=1) & ~same.all(dim=1)
    gap = torch.where(usable, hardest_positive - hardest_negative, 0.0)
    losses = F.softplus(gap) if margin is None else F.relu(gap + margin)
    return (losses * usable).sum() / usable.sum().clamp(min=1)


def pairwise_euclidean(embeddings: Float[Tensor, "n dim"]) -> Float[Tensor, "n n"]:
    """Euclidean distances of every pair; the square root keeps a finite slope where two embeddings coincide.

    Runs in float32 whatever the autocast type: the difference of squares loses what bfloat16 cannot hold.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        x = embeddings.float()
        squares = x.square().sum(dim=1)
        distances = squares[:, None] + squares[None, :] - 2.0 * x @ x.T
        return distances.clamp(min=1e-12).sqrt()
