"""What a student copies from its teacher: scores of identities, and how alike the crops of a batch are.

The teacher is fixed: no gradient reaches it.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional as F

from reidkit.train.losses.similarity import MASKED, cosines


def score_divergence(
    student: Float[Tensor, "n identities"],
    teacher: Float[Tensor, "n identities"],
    *,
    kind: Literal["kl", "js"],
    temperature: float,
) -> Float32[Tensor, ""]:
    """Divergence of the student's softmax from the teacher's, the mean over crops, times `temperature ** 2`.

    "kl" is the Kullback-Leibler divergence of the student from the teacher. "js", the Jensen-Shannon divergence, is the
    mean of both's divergences from their average: symmetric, and at most log 2 before the factor. What fast-reid calls
    "jsdiv" is the mean of the Kullback-Leibler divergences both ways, and has no bound. The factor makes up for the
    gradients, which fall with the square of the temperature.
    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015; Lin, "Divergence Measures Based on the
    Shannon Entropy", IEEE Transactions on Information Theory 1991.

    Args:
        student: logits.
        teacher: logits for the same identities.
        kind: of the divergence.
        temperature: that logits are divided by.
    """
    ours = F.log_softmax(student.float() / temperature, dim=1)
    theirs = F.log_softmax(teacher.detach().float() / temperature, dim=1)
    if kind == "kl":
        divergence = _divergence(theirs, ours)
    else:
        average = torch.logaddexp(ours, theirs) - math.log(2)
        divergence = (_divergence(theirs, average) + _divergence(ours, average)) / 2
    return divergence * temperature**2


def relation_divergence(
    student_embeddings: Float[Tensor, "n student_dim"],
    teacher_embeddings: Float[Tensor, "n teacher_dim"],
    *,
    temperature: float,
) -> Float32[Tensor, ""]:
    """Divergence of whom a crop resembles: the softmax over its cosines to the other crops of the batch.

    The mean over crops of the Kullback-Leibler divergence of the student from the teacher. The widths of the embeddings
    may differ, and no classifier is needed.
    Source: Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018, which
    shares out the cosines themselves, moved to 0 to 1. The softmax with a temperature is that of Koohpayegani et al.,
    "CompRess: Self-Supervised Learning by Compressing Representations", NeurIPS 2020.

    Args:
        student_embeddings: of the batch.
        teacher_embeddings: of the same crops.
        temperature: that cosines are divided by.
    """
    ours = _log_relations(student_embeddings, temperature)
    theirs = _log_relations(teacher_embeddings.detach(), temperature)
    return _divergence(theirs, ours)


def _log_relations(embeddings: Float[Tensor, "n dim"], temperature: float) -> Float[Tensor, "n n"]:
    itself = torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
    logits = cosines(embeddings, embeddings) / temperature
    return F.log_softmax(logits.masked_fill(itself, MASKED), dim=1)


def _divergence(log_p: Float[Tensor, "n k"], log_q: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """KL(p, q), the mean over rows."""
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
