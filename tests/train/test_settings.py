"""The tables of a recipe: what their values may be, and what follows from them."""

import math

import pytest

from reidkit.errors import ConfigError
from reidkit.train.settings import (
    Augment,
    Batches,
    CenterLoss,
    CircleLoss,
    ContrastiveLoss,
    DistillationLoss,
    IdentityLoss,
    Loss,
    Mining,
    Optim,
    TripletLoss,
    Validation,
    at_least,
    fraction,
    not_negative,
    positive,
    within,
)

OFF = {
    "identity": IdentityLoss(weight=0.0),
    "triplet": TripletLoss(weight=0.0),
    "circle": CircleLoss(weight=0.0),
    "contrastive": ContrastiveLoss(weight=0.0),
}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Batches(identities=1), r"batches\.identities is out of range\n  got: 1\n  expected: at least 2"),
        (lambda: Batches(crops=1), r"batches\.crops is out of range\n  got: 1\n  expected: at least 2"),
        (lambda: Mining(round_epochs=-1.0), r"mining\.round_epochs is out of range\n  got: -1\.0\n  expected: 0 or"),
        (lambda: Mining(images=-1), r"mining\.images is out of range"),
        (lambda: Mining(queries=-1), r"mining\.queries is out of range"),
        (lambda: Mining(positives=0), r"mining\.positives is out of range\n  got: 0\n  expected: at least 1"),
        (lambda: Mining(negatives=0), r"mining\.negatives is out of range"),
        (lambda: Augment(flip=1.1), r"augment\.flip is out of range\n  got: 1\.1\n  expected: 0 to 1"),
        (lambda: Augment(color=-0.1), r"augment\.color is out of range\n  got: -0\.1\n  expected: 0 to 1"),
        (lambda: Augment(erase=math.nan), r"augment\.erase is out of range\n  got: nan"),
        (lambda: Augment(policy=2.0), r"augment\.policy is out of range"),
        (lambda: Augment(patch=-1.0), r"augment\.patch is out of range"),
        (lambda: Augment(background=9.0), r"augment\.background is out of range"),
        (lambda: Augment(grey=9.0), r"augment\.grey is out of range"),
        (lambda: Augment(affine=9.0), r"augment\.affine is out of range"),
        (lambda: Augment(saturation=1.5), r"augment\.saturation is out of range"),
        (lambda: Augment(pad=-1), r"augment\.pad is out of range\n  got: -1\n  expected: at least 0"),
        (lambda: Augment(rotation=181.0), r"augment\.rotation is out of range\n  got: 181\.0\n  expected: 0 to 180"),
        (lambda: Augment(zoom=-0.1), r"augment\.zoom is out of range"),
        (lambda: Augment(shear=90.0), r"augment\.shear is out of range\n  got: 90\.0\n  expected: 0 to 60"),
        (lambda: Augment(hue=0.6), r"augment\.hue is out of range\n  got: 0\.6\n  expected: 0 to 0\.5"),
        (lambda: Augment(erase_max=0.01), r"augment\.erase_max is out of range\n  got: 0\.01\n  expected: 0\.02 to 1"),
        (lambda: IdentityLoss(weight=-1.0), r"loss\.identity\.weight is out of range"),
        (lambda: IdentityLoss(smoothing=2.0), r"loss\.identity\.smoothing is out of range\n  got: 2\.0"),
        (lambda: IdentityLoss(scale=0.0), r"loss\.identity\.scale is out of range\n  got: 0\.0\n  expected: above 0"),
        (lambda: IdentityLoss(margin=1.5), r"loss\.identity\.margin is out of range"),
        (lambda: TripletLoss(weight=math.inf), r"loss\.triplet\.weight is out of range\n  got: inf"),
        (lambda: TripletLoss(margin=-0.1), r"loss\.triplet\.margin is out of range\n  got: -0\.1\n  expected: 0 or"),
        (lambda: TripletLoss(margin=math.nan), r"loss\.triplet\.margin is out of range\n  got: nan"),
        (lambda: TripletLoss(kind="weighted"), r'weighted triplet loss has no margin\n  got: 0\.3\n.*margin = "soft"'),
        (lambda: CircleLoss(weight=-1.0), r"loss\.circle\.weight is out of range"),
        (lambda: CircleLoss(scale=-1.0), r"loss\.circle\.scale is out of range"),
        (lambda: CircleLoss(margin=2.0), r"loss\.circle\.margin is out of range"),
        (lambda: ContrastiveLoss(weight=-1.0), r"loss\.contrastive\.weight is out of range"),
        (lambda: ContrastiveLoss(temperature=0.0), r"loss\.contrastive\.temperature is out of range"),
        (lambda: CenterLoss(weight=-1.0), r"loss\.center\.weight is out of range"),
        (lambda: DistillationLoss(weight=-1.0), r"loss\.distillation\.weight is out of range"),
        (lambda: DistillationLoss(relation_weight=-1.0), r"loss\.distillation\.relation_weight is out of range"),
        (lambda: DistillationLoss(temperature=0.0), r"loss\.distillation\.temperature is out of range"),
        (lambda: DistillationLoss(relation_temperature=0.0), r"loss\.distillation\.relation_temperature is out of"),
        (
            lambda: Loss(**OFF),
            r"Nothing in this loss tells identities apart\n  got: weights of 0 for identity, triplet",
        ),
        (lambda: Loss(**OFF, center=CenterLoss(weight=1.0)), r"Nothing in this loss tells identities apart"),
        (lambda: Optim(epochs=0.0), r"optim\.epochs is out of range\n  got: 0\.0\n  expected: above 0"),
        (lambda: Optim(epochs=math.inf), r"optim\.epochs is out of range\n  got: inf\n  expected: above 0, finite"),
        (lambda: Optim(lr=-1.0), r"optim\.lr is out of range\n  got: -1\.0"),
        (lambda: Optim(lr=math.nan), r"optim\.lr is out of range\n  got: nan"),
        (lambda: Optim(weight_decay=-1e-4), r"optim\.weight_decay is out of range"),
        (lambda: Optim(warmup_epochs=-1.0), r"optim\.warmup_epochs is out of range"),
        (lambda: Optim(warmup_start=1.5), r"optim\.warmup_start is out of range"),
        (lambda: Optim(gamma=-0.1), r"optim\.gamma is out of range"),
        (lambda: Optim(clip=-1.0), r"optim\.clip is out of range"),
        (lambda: Optim(freeze_epochs=-1.0), r"optim\.freeze_epochs is out of range"),
        (lambda: Optim(momentum=1.0), r"optim\.momentum is out of range\n  got: 1\.0\n  expected: 0 or above, below 1"),
        (lambda: Optim(ema=1.0), r"optim\.ema is out of range\n  got: 1\.0\n  expected: 0 or above, below 1"),
        (lambda: Optim(accumulate=0), r"optim\.accumulate is out of range\n  got: 0\n  expected: at least 1"),
        (lambda: Optim(steps=(90.0, 40.0)), r"optim\.steps are out of order\n  got: \[90\.0, 40\.0\]"),
        (lambda: Optim(steps=(0.0, 40.0)), r"optim\.steps are out of order"),
        (lambda: Optim(steps=(40.0, 40.0)), r"optim\.steps are out of order\n  got: \[40\.0, 40\.0\]"),
        (lambda: Optim(steps=(math.nan,)), r"optim\.steps are out of order\n  got: \[nan\]"),
        (lambda: Optim(steps=(40.0, math.inf)), r"optim\.steps are out of order"),
        (lambda: Validation(every=-1.0), r"validation\.every is out of range"),
        (
            lambda: Validation(identities=0.0),
            r"validation\.identities is out of range\n  got: 0\.0\n  expected: between",
        ),
        (lambda: Validation(identities=1.0), r"validation\.identities is out of range"),
        (lambda: Validation(patience=-1), r"validation\.patience is out of range"),
    ],
)
def test_values_out_of_range(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_the_borders_are_in_range():
    Augment(flip=1.0, pad=0, color=1.0, erase=1.0, rotation=180.0, zoom=4.0, shear=60.0, hue=0.5, erase_max=0.02)
    Batches(2, 2)
    Mining(0.0, 0, 0, 1, 1)
    Optim(epochs=0.01, lr=1e-9, weight_decay=0.0, warmup_epochs=0.0, momentum=0.0, steps=())
    Validation(every=0.0, identities=0.01, patience=0)
    Loss(identity=IdentityLoss(smoothing=0.0), triplet=TripletLoss(weight=0.0, margin=0.0))
    TripletLoss(kind="weighted", margin="soft")
    CircleLoss(margin=1.0)


def test_the_size_of_a_batch():
    assert Batches(16, 4).size == 64


@pytest.mark.parametrize("name", ["triplet", "circle", "contrastive"])
def test_losses_that_compare_crops_want_several_of_one_identity(name):
    kind = type(OFF[name])
    assert Loss(**OFF | {name: kind(weight=0.1)}).compares


def test_losses_that_do_not_compare_crops():
    alone = OFF | {"identity": IdentityLoss()}
    assert not Loss(**alone).compares
    # Those have no say in it: a centre is learned, and a teacher may be missing.
    assert not Loss(**alone, center=CenterLoss(weight=1.0), distillation=DistillationLoss()).compares


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_check_lets_through_what_is_no_number(value):
    for check in (positive, not_negative, fraction, lambda n, v: within(n, v, 0, 9)):
        with pytest.raises(ConfigError, match="x is out of range"):
            check("x", value)


def test_at_least():
    at_least("x", 2, 2)
    with pytest.raises(ConfigError, match=r"x is out of range\n  got: 1\n  expected: at least 2"):
        at_least("x", 1, 2)
