"""The tables of a recipe: batches, augmentation, losses, optimiser. Frozen dataclasses, checked when built."""

import math
from dataclasses import dataclass, field
from typing import Literal

from reidkit.errors import ConfigError

Balance = Literal["crops", "cameras", "identities"]


@dataclass(frozen=True, slots=True)
class Batches:
    """P x K batches: `identities` people with `crops` pictures each.

    Attributes:
        identities: P.
        crops: K.
        balance: what is seen equally often. "crops": every crop about once an epoch. "cameras": the same, and the K
            crops of a person come from as many cameras as that person has. "identities": everybody equally often, also
            people with few crops.
    """

    identities: int = 16
    crops: int = 4
    balance: Balance = "crops"

    def __post_init__(self) -> None:
        at_least("batches.identities", self.identities, 2)
        at_least("batches.crops", self.crops, 2)

    @property
    def size(self) -> int:
        """Crops of a batch."""
        return self.identities * self.crops


@dataclass(frozen=True, slots=True)
class Mining:
    """Offline batch-hard mining: batches of hard triplets, searched for with the network as it is.

    A round embeds `images` random crops, chooses `queries` among them, and gives each its hardest positives and
    negatives; their batches take the place of the P x K batches until the next round. Nothing is mined unless
    `round_epochs` is above 0.

    Attributes:
        round_epochs: passes over the data between two rounds; 0 mines online only, within P x K batches.
        images: crops that a round embeds; 0 takes all.
        queries: of a round, chosen among the crops whose hardest triplet is worst; 0 takes half of the images.
        positives: hardest positives of each query.
        negatives: hardest negatives of each query.
    """

    round_epochs: float = 0.0
    images: int = 0
    queries: int = 0
    positives: int = 1
    negatives: int = 2

    def __post_init__(self) -> None:
        not_negative("mining.round_epochs", self.round_epochs)
        at_least("mining.images", self.images, 0)
        at_least("mining.queries", self.queries, 0)
        at_least("mining.positives", self.positives, 1)
        at_least("mining.negatives", self.negatives, 1)


@dataclass(frozen=True, slots=True)
class Augment:
    """Random changes to a training crop, in the order of the attributes. A chance of 0 switches one off.

    Attributes:
        flip: chance of mirroring.
        pad: the crop is shifted by up to so many pixels each way, as if padded by them and cut out again.
        affine: chance of a turn, a zoom and a shear, drawn together.
        rotation: of the affine change: up to so many degrees either way.
        zoom: of the affine change: by a factor of up to 1 + zoom, either way.
        shear: of the affine change: up to so many degrees either way.
        background: chance that what surrounds the person is mixed with another crop's surroundings.
        policy: chance of two operations of the AutoAugment policy for ImageNet.
        color: chance of colour jitter.
        brightness: of the jitter: a factor of 1 +- so much; `contrast` and `saturation` likewise.
        contrast: see `brightness`.
        saturation: see `brightness`.
        hue: of the jitter: a turn of the colour circle by up to so many whole turns, at most 0.5.
        grey: chance of losing all colour.
        patch: chance that a random rectangle of another crop covers part of this one.
        erase: chance of overwriting a random rectangle with the data's mean colour.
        erase_max: of the erasing: the largest rectangle, as a fraction of the crop's area.
    """

    flip: float = 0.5
    pad: int = 10
    affine: float = 0.0
    rotation: float = 10.0
    zoom: float = 0.1
    shear: float = 0.0
    background: float = 0.0
    policy: float = 0.0
    color: float = 0.0
    brightness: float = 0.2
    contrast: float = 0.15
    saturation: float = 0.2
    hue: float = 0.0
    grey: float = 0.0
    patch: float = 0.0
    erase: float = 0.5
    erase_max: float = 0.4

    def __post_init__(self) -> None:
        chances = ("flip", "affine", "background", "policy", "color", "grey", "patch", "erase")
        for name in (*chances, "brightness", "contrast", "saturation"):
            fraction(f"augment.{name}", getattr(self, name))
        at_least("augment.pad", self.pad, 0)
        within("augment.rotation", self.rotation, 0, 180)
        within("augment.zoom", self.zoom, 0, 4)
        within("augment.shear", self.shear, 0, 60)
        within("augment.hue", self.hue, 0, 0.5)
        within("augment.erase_max", self.erase_max, 0.02, 1)


IdentityKind = Literal["softmax", "cosface", "arcface", "am-softmax", "circle"]


@dataclass(frozen=True, slots=True)
class IdentityLoss:
    """Classification of the training identities, from the embedding after the neck.

    Attributes:
        weight: of this loss; 0 switches it off.
        kind: "softmax" scores by a linear layer; the others by cosines, with a margin.
        smoothing: share of the target spread over the other identities.
        scale: of the cosines.
        margin: of the cosine (CosFace, AM-softmax, circle) or of the angle in radians (ArcFace).
    """

    weight: float = 1.0
    kind: IdentityKind = "softmax"
    smoothing: float = 0.1
    scale: float = 30.0
    margin: float = 0.35

    def __post_init__(self) -> None:
        not_negative("loss.identity.weight", self.weight)
        fraction("loss.identity.smoothing", self.smoothing)
        positive("loss.identity.scale", self.scale)
        fraction("loss.identity.margin", self.margin)


@dataclass(frozen=True, slots=True)
class TripletLoss:
    """Pulls a crop to its own identity and pushes it from others, in Euclidean distance, before the neck.

    Attributes:
        weight: of this loss; 0 switches it off.
        kind: "batch-hard" takes the farthest positive and the nearest negative; "weighted" (AGW) takes all of them,
            weighed by how hard they are.
        margin: in units of distance; "soft" takes the soft margin, the only one that the weighted kind has.
        normalize: measure between embeddings of length 1.
    """

    weight: float = 1.0
    kind: Literal["batch-hard", "weighted"] = "batch-hard"
    margin: float | Literal["soft"] = 0.3
    normalize: bool = False

    def __post_init__(self) -> None:
        not_negative("loss.triplet.weight", self.weight)
        if self.margin != "soft":
            not_negative("loss.triplet.margin", self.margin)
            if self.kind == "weighted":
                raise ConfigError(
                    "The weighted triplet loss has no margin", got=self.margin, fix='say loss.triplet.margin = "soft"'
                )


@dataclass(frozen=True, slots=True)
class CircleLoss:
    """Circle loss between the pairs of a batch: each similarity is pulled as far as it still has to go.

    Attributes:
        weight: of this loss; 0 switches it off.
        scale: of the similarities.
        margin: relaxation; similarities aim at 1 - margin and margin.
    """

    weight: float = 0.0
    scale: float = 64.0
    margin: float = 0.35

    def __post_init__(self) -> None:
        not_negative("loss.circle.weight", self.weight)
        positive("loss.circle.scale", self.scale)
        fraction("loss.circle.margin", self.margin)


@dataclass(frozen=True, slots=True)
class ContrastiveLoss:
    """Supervised contrastive loss between the pairs of a batch.

    Attributes:
        weight: of this loss; 0 switches it off.
        temperature: that cosines are divided by.
    """

    weight: float = 0.0
    temperature: float = 0.1

    def __post_init__(self) -> None:
        not_negative("loss.contrastive.weight", self.weight)
        positive("loss.contrastive.temperature", self.temperature)


@dataclass(frozen=True, slots=True)
class CenterLoss:
    """Squared distance to the learned centre of the identity.

    Attributes:
        weight: of this loss; 0 switches it off. The bag of tricks has 5e-4.
    """

    weight: float = 0.0

    def __post_init__(self) -> None:
        not_negative("loss.center.weight", self.weight)


@dataclass(frozen=True, slots=True)
class DistillationLoss:
    """What a student is told to copy from its teacher.

    Attributes:
        weight: of the identity scores, where the teacher knows the same training identities; 0 switches it off.
        kind: divergence of the scores: "kl" (Hinton) or "js", which is symmetric and bounded.
        temperature: that scores are divided by.
        relation_weight: of the cosines between the crops of a batch, which need no classifier; 0 switches it off.
        relation_temperature: that those cosines are divided by.
    """

    weight: float = 1.0
    kind: Literal["kl", "js"] = "kl"
    temperature: float = 4.0
    relation_weight: float = 1.0
    relation_temperature: float = 0.1

    def __post_init__(self) -> None:
        for name in ("weight", "relation_weight"):
            not_negative(f"loss.distillation.{name}", getattr(self, name))
        for name in ("temperature", "relation_temperature"):
            positive(f"loss.distillation.{name}", getattr(self, name))


@dataclass(frozen=True, slots=True)
class Loss:
    """What is minimised: the weighted sum of these. Distillation counts only when there is a teacher."""

    identity: IdentityLoss = field(default_factory=IdentityLoss)
    triplet: TripletLoss = field(default_factory=TripletLoss)
    circle: CircleLoss = field(default_factory=CircleLoss)
    contrastive: ContrastiveLoss = field(default_factory=ContrastiveLoss)
    center: CenterLoss = field(default_factory=CenterLoss)
    distillation: DistillationLoss = field(default_factory=DistillationLoss)

    @property
    def compares(self) -> bool:
        """Whether a loss compares crops with each other, and so wants several of one identity in a batch."""
        return any(part.weight > 0 for part in (self.triplet, self.circle, self.contrastive))

    def __post_init__(self) -> None:
        if not any(part.weight > 0 for part in (self.identity, self.triplet, self.circle, self.contrastive)):
            raise ConfigError(
                "Nothing in this loss tells identities apart",
                got="weights of 0 for identity, triplet, circle and contrastive",
                expected="at least one above 0",
            )


@dataclass(frozen=True, slots=True)
class Optim:
    """The optimiser and the course of its learning rate.

    Attributes:
        epochs: passes over all training crops.
        lr: the highest learning rate.
        kind: "adam" (the penalty is part of the gradient), "adamw" (decay of its own), "sgd" (with Nesterov momentum).
        momentum: of SGD.
        weight_decay: of tables of weights; biases and the scales of normalisation do not decay.
        schedule: "cosine" falls to 0; "steps" falls by `gamma` after each of `steps`.
        steps: in epochs.
        gamma: factor of each step.
        warmup_epochs: the learning rate grows from `warmup_start` times `lr` over so many, at most half of the run.
        warmup_start: see `warmup_epochs`.
        clip: largest length of the gradient of all weights together; 0 does not clip.
        accumulate: batches whose gradients are averaged for a step.
        ema: decay of the moving average of the weights, which is what is kept of the run; 0 keeps the weights
            themselves. It grows to this value over the first steps: min(ema, (1 + step) / (10 + step)).
        freeze_epochs: the backbone stays as it is for so many, and only the head learns.
    """

    epochs: float = 120.0
    lr: float = 3.5e-4
    kind: Literal["adam", "adamw", "sgd"] = "adam"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "steps"] = "cosine"
    steps: tuple[float, ...] = (40.0, 90.0)
    gamma: float = 0.1
    warmup_epochs: float = 10.0
    warmup_start: float = 0.01
    clip: float = 0.0
    accumulate: int = 1
    ema: float = 0.0
    freeze_epochs: float = 0.0

    def __post_init__(self) -> None:
        for name in ("epochs", "lr"):
            positive(f"optim.{name}", getattr(self, name))
        for name in ("weight_decay", "warmup_epochs", "clip", "freeze_epochs"):
            not_negative(f"optim.{name}", getattr(self, name))
        for name in ("momentum", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(
                    f"optim.{name} is out of range", got=getattr(self, name), expected="0 or above, below 1"
                )
        fraction("optim.gamma", self.gamma)
        fraction("optim.warmup_start", self.warmup_start)
        at_least("optim.accumulate", self.accumulate, 1)
        # Compared with "not", which refuses NaN, too.
        if not all(before < step < math.inf for before, step in zip((0.0, *self.steps), self.steps, strict=False)):
            raise ConfigError("optim.steps are out of order", got=list(self.steps), expected="epochs above 0, growing")


@dataclass(frozen=True, slots=True)
class Validation:
    """Measuring the network while it learns: mAP, the best checkpoint, and an early end.

    Attributes:
        every: epochs between two measurements; 0 measures nothing.
        on: "held-out" keeps identities back from the training; "test" takes the data set's query and gallery, and then
            the best checkpoint was chosen by the figures it is judged by.
        identities: share of the training identities that are held out.
        patience: measurements in a row without a new best after which the run ends; 0 runs to the end.
    """

    every: float = 0.0
    on: Literal["held-out", "test"] = "held-out"
    identities: float = 0.1
    patience: int = 0

    def __post_init__(self) -> None:
        not_negative("validation.every", self.every)
        if not 0 < self.identities < 1:
            raise ConfigError("validation.identities is out of range", got=self.identities, expected="between 0 and 1")
        at_least("validation.patience", self.patience, 0)


def fraction(name: str, value: float | int) -> None:
    """Refuses what is not from 0 to 1."""
    within(name, value, 0, 1)


def within(name: str, value: float | int, low: float | int, high: float | int) -> None:
    """Refuses what is not from `low` to `high`."""
    if not low <= value <= high:
        raise ConfigError(f"{name} is out of range", got=value, expected=f"{low:g} to {high:g}")


def positive(name: str, value: float | int) -> None:
    """Refuses what is not above 0, or not finite."""
    if not 0 < value < math.inf:
        raise ConfigError(f"{name} is out of range", got=value, expected="above 0, finite")


def not_negative(name: str, value: float | int) -> None:
    """Refuses what is below 0, or not finite."""
    if not 0 <= value < math.inf:
        raise ConfigError(f"{name} is out of range", got=value, expected="0 or above, finite")


def at_least(name: str, value: int, least: int) -> None:
    """Refuses what is below `least`."""
    if value < least:
        raise ConfigError(f"{name} is out of range", got=value, expected=f"at least {least}")
