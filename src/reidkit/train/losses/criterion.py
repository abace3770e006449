"""The weighted sum of a recipe's losses over the heads of a network."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn

from reidkit.errors import ConfigError
from reidkit.models.head import HeadOutputs
from reidkit.train.losses.center import center_loss
from reidkit.train.losses.distillation import relation_divergence, score_divergence
from reidkit.train.losses.identity import arcface_logits, circle_logits, cosface_logits, identity_loss
from reidkit.train.losses.pairs import batch_hard_triplet, circle_loss, supervised_contrastive, weighted_triplet
from reidkit.train.losses.similarity import cosines, inner_products, unit_length
from reidkit.train.settings import DistillationLoss, IdentityLoss, Loss, TripletLoss

LossName: TypeAlias = Literal["identity", "triplet", "circle", "contrastive", "center", "scores", "relations"]


class TeacherOutputs(NamedTuple):
    """What a teacher says of a batch.

    Attributes:
        embedding: what it would be searched with.
        logits: its scores of the training identities, where it knows them.
    """

    embedding: Float[Tensor, "n dim"]
    logits: Float[Tensor, "n identities"] | None


class Criterion(nn.Module):
    """The losses of a recipe, added up. Those with a weight of 0 are not computed.

    The identity loss is the mean over all heads; metric losses are the mean over the heads that saw the whole crop,
    since a stripe of it need not tell people apart. Those of Euclidean distances (triplet, center) take what stands
    before the neck, as in the bag of tricks: after it they would pull against the classifier, which goes by angles.
    Those of cosines (circle, contrastive) take what stands after it, the very cosines of the search; before it, behind
    a ReLU, no cosine is below 0. fast-reid has one side for all metric losses, by default the one before the neck.

    Args:
        settings: of the losses.
        heads: outputs of the network for any batch, also on the device "meta": they tell widths and identities.
        distils: a teacher's outputs come with each batch.
        teacher_scores: and those have scores of the training identities; without them only relations are copied.

    Attributes:
        names: of the losses that are on, in the order in which `forward` gives them.
        centers: of the identities, for each head that sees the whole crop; empty without center loss. They are
            parameters to train with the network's. They begin at 0, since an optimiser moves them slowly: drawn at
            random, they would be far from any crop for most of a run.

    Raises:
        ConfigError: there is a teacher, and nothing that a student could copy is on.
    """

    def __init__(
        self, settings: Loss, heads: Sequence[HeadOutputs], *, distils: bool = False, teacher_scores: bool = False
    ) -> None:
        super().__init__()
        self.settings = settings
        if distils:
            _check_distillation(settings.distillation, teacher_scores=teacher_scores)
        weights: dict[LossName, float] = {
            "identity": settings.identity.weight,
            "triplet": settings.triplet.weight,
            "circle": settings.circle.weight,
            "contrastive": settings.contrastive.weight,
            "center": settings.center.weight,
            "scores": settings.distillation.weight if distils and teacher_scores else 0.0,
            "relations": settings.distillation.relation_weight if distils else 0.0,
        }
        weights = {name: weight for name, weight in weights.items() if weight > 0}
        self.names: tuple[LossName, ...] = tuple(weights)
        self.weights: Tensor
        self.register_buffer("weights", torch.tensor(list(weights.values())), persistent=False)
        self.centers = nn.ParameterList(
            torch.zeros(len(head.classifier), head.pooled.shape[1])
            for head in heads
            if head.whole and "center" in weights
        )

    def forward(
        self, outputs: Sequence[HeadOutputs], labels: Int[Tensor, " n"], teacher: TeacherOutputs | None = None
    ) -> Float32[Tensor, " losses"]:
        """The weighted sum, to be minimised; then each loss without its weight, to be shown, in the order of `names`.

        Args:
            outputs: of the network's heads.
            labels: rows of the classifier.
            teacher: its outputs for the same crops, if the student is to copy it.
        """
        losses = torch.stack([self._loss(name, outputs, labels, teacher) for name in self.names])
        return torch.cat([(losses * self.weights).sum()[None], losses.detach()])

    def _loss(
        self, name: LossName, outputs: Sequence[HeadOutputs], labels: Tensor, teacher: TeacherOutputs | None
    ) -> Tensor:
        settings = self.settings
        whole = [head for head in outputs if head.whole]
        match name:
            case "identity":
                return _mean([_identity(head, labels, settings.identity) for head in outputs])
            case "triplet":
                return _mean([_triplet(head.pooled, labels, settings.triplet) for head in whole])
            case "circle":
                scale, margin = settings.circle.scale, settings.circle.margin
                return _mean([circle_loss(head.embedding, labels, scale=scale, margin=margin) for head in whole])
            case "contrastive":
                temperature = settings.contrastive.temperature
                return _mean(
                    [supervised_contrastive(head.embedding, labels, temperature=temperature) for head in whole]
                )
            case "center":
                pairs = zip(whole, self.centers, strict=True)
                return _mean([center_loss(head.pooled, labels, centers) for head, centers in pairs])
            case "scores":
                assert teacher is not None, "built for a teacher"
                assert teacher.logits is not None, "built for a teacher with scores"
                scores = torch.stack([identity_scores(head, settings.identity) for head in outputs]).mean(dim=0)
                kind, temperature = settings.distillation.kind, settings.distillation.temperature
                return score_divergence(scores, teacher.logits, kind=kind, temperature=temperature)
            case "relations":
                assert teacher is not None, "built for a teacher"
                embedding = torch.cat([head.embedding.float() for head in outputs], dim=1)
                temperature = settings.distillation.relation_temperature
                return relation_divergence(embedding, teacher.embedding, temperature=temperature)


def identity_scores(head: HeadOutputs, settings: IdentityLoss) -> Float32[Tensor, "n identities"]:
    """Logits of a classifier as it is trained by an identity loss, without the margin, which knows the answer.

    Args:
        head: whose classifier it is.
        settings: of the loss that trains it.
    """
    if settings.kind == "softmax":
        return inner_products(head.embedding, head.classifier)
    return settings.scale * cosines(head.embedding, head.classifier)


def _identity(head: HeadOutputs, labels: Tensor, settings: IdentityLoss) -> Tensor:
    scale, margin = settings.scale, settings.margin
    match settings.kind:
        case "softmax":
            logits = identity_scores(head, settings)
        case "cosface" | "am-softmax":  # two names of one function
            logits = cosface_logits(cosines(head.embedding, head.classifier), labels, scale=scale, margin=margin)
        case "arcface":
            logits = arcface_logits(cosines(head.embedding, head.classifier), labels, scale=scale, margin=margin)
        case "circle":
            logits = circle_logits(cosines(head.embedding, head.classifier), labels, scale=scale, margin=margin)
    return identity_loss(logits, labels, smoothing=settings.smoothing)


def _triplet(pooled: Tensor, labels: Tensor, settings: TripletLoss) -> Tensor:
    embeddings = unit_length(pooled) if settings.normalize else pooled
    if settings.kind == "weighted":
        return weighted_triplet(embeddings, labels)
    return batch_hard_triplet(embeddings, labels, margin=settings.margin)


def _mean(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(losses)).mean()


def _check_distillation(settings: DistillationLoss, *, teacher_scores: bool) -> None:
    if settings.relation_weight > 0 or (settings.weight > 0 and teacher_scores):
        return
    scores = "" if teacher_scores else ", from a teacher that does not score the training identities"
    raise ConfigError(
        "There is a teacher, and nothing to copy from it",
        got=f"loss.distillation.weight {settings.weight:g} and relation_weight {settings.relation_weight:g}{scores}",
        expected="a weight above 0 for what the teacher gives",
        fix="--set loss.distillation.relation_weight=1, which needs no scores; or train without a teacher",
    )
