"""Center loss: crops of an identity gather around a learned point."""

from jaxtyping import Float, Float32, Int
from torch import Tensor
from torch.nn import functional as F


def center_loss(
    embeddings: Float[Tensor, "n dim"], labels: Int[Tensor, " n"], centers: Float[Tensor, "identities dim"]
) -> Float32[Tensor, ""]:
    """The mean squared Euclidean distance of a crop to the centre of its identity.

    It differs from the paper in two ways. The paper has half of the sum over the batch; the mean is what the bag of
    tricks, whose weight of 5e-4 is the usual one, computes. And the paper moves each centre by a rule of its own, half
    of the way to the mean of its crops; here the centres are parameters that the optimiser of all weights trains. Under
    Adam they move by about the learning rate a step, whatever the weight of the loss.
    Source: Wen et al., "A Discriminative Feature Learning Approach for Deep Face Recognition", ECCV 2016.

    Args:
        embeddings: of the crops.
        labels: rows of `centers`.
        centers: one point for each identity.
    """
    return (embeddings.float() - F.embedding(labels, centers.float())).square().sum(dim=1).mean()
