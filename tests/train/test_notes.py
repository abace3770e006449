"""What is said of a recipe before it is run."""

from dataclasses import replace
from importlib import resources

import pytest

from reidkit.train.notes import recipe_notes
from reidkit.train.recipe import Recipe, Stage, load_recipe
from reidkit.train.settings import (
    Augment,
    Batches,
    CircleLoss,
    ContrastiveLoss,
    DistillationLoss,
    IdentityLoss,
    Loss,
    Mining,
    Optim,
    TripletLoss,
    Validation,
)

NAMES = sorted(
    entry.name.removesuffix(".toml")
    for entry in (resources.files("reidkit.train") / "recipes").iterdir()
    if entry.name.endswith(".toml")
)
ALONE = Loss(triplet=TripletLoss(weight=0.0))


@pytest.mark.parametrize("name", NAMES)
def test_of_the_recipes_that_come_along_there_is_nothing_to_say(name):
    assert recipe_notes(load_recipe(name), init=True, teacher=True) == []
    found = recipe_notes(load_recipe(name), init=False, teacher=False)
    assert [note.split()[0] for note in found] == {
        "sbs": ["optim.freeze_epochs"],
        "distillation": ["loss.distillation.relation_weight"],
    }.get(name, [])


@pytest.mark.parametrize(
    ("recipe", "note"),
    [
        (Recipe(augment=Augment(rotation=20.0)), "augment.rotation does nothing: augment.affine is 0"),
        (
            Recipe(augment=Augment(hue=0.1, contrast=0.5)),
            "augment.contrast and augment.hue do nothing: augment.color is 0",
        ),
        (Recipe(augment=Augment(erase=0.0, erase_max=0.2)), "augment.erase_max does nothing: augment.erase is 0"),
        (Recipe(mining=Mining(queries=9)), "mining.queries does nothing: mining.round_epochs is 0"),
        (
            Recipe(mining=Mining(round_epochs=1.0), batches=Batches(balance="cameras")),
            "batches.balance does nothing: batches are mined",
        ),
        (
            Recipe(loss=ALONE, batches=Batches(balance="identities")),
            "batches.balance does nothing: no loss compares crops, and batches are plain",
        ),
        (
            Recipe(loss=ALONE, mining=Mining(round_epochs=1.0)),
            "mining looks for triplets, and no loss compares crops: set the weight of one above 0",
        ),
        (
            Recipe(loss=Loss(identity=IdentityLoss(margin=0.5))),
            'loss.identity.margin does nothing: loss.identity.kind is "softmax"',
        ),
        (
            Recipe(loss=Loss(identity=IdentityLoss(weight=0.0, kind="arcface"))),
            "loss.identity.kind does nothing: loss.identity.weight is 0",
        ),
        (
            Recipe(loss=Loss(triplet=TripletLoss(weight=0.0, margin="soft"))),
            "loss.triplet.margin does nothing: loss.triplet.weight is 0",
        ),
        (Recipe(loss=Loss(circle=CircleLoss(scale=9.0))), "loss.circle.scale does nothing: loss.circle.weight is 0"),
        (
            Recipe(loss=Loss(contrastive=ContrastiveLoss(temperature=0.5))),
            "loss.contrastive.temperature does nothing: loss.contrastive.weight is 0",
        ),
        (
            Recipe(loss=Loss(distillation=DistillationLoss(kind="js"))),
            "loss.distillation.kind does nothing: there is no --teacher",
        ),
        (Recipe(optim=Optim(momentum=0.5)), 'optim.momentum does nothing: optim.kind is "adam"'),
        (
            Recipe(optim=Optim(steps=(9.0,), gamma=0.5)),
            'optim.steps and optim.gamma do nothing: optim.schedule is "cosine"',
        ),
        (
            Recipe(optim=Optim(warmup_epochs=0.0, warmup_start=0.5)),
            "optim.warmup_start does nothing: optim.warmup_epochs is 0",
        ),
        (
            Recipe(optim=Optim(schedule="steps", epochs=40.0)),
            "optim.steps has 40, 90, which the stage of 40 epochs does not reach",
        ),
        (
            Recipe(optim=Optim(freeze_epochs=5.0)),
            "optim.freeze_epochs holds a backbone of random weights still: give --init, or set it to 0",
        ),
        (Recipe(validation=Validation(patience=3)), "validation.patience does nothing: validation.every is 0"),
        (Recipe(validation=Validation(on="test")), "validation.on does nothing: validation.every is 0"),
        (
            Recipe(validation=Validation(every=1.0, on="test", identities=0.2)),
            "validation.identities does nothing: nobody is held out",
        ),
    ],
)
def test_what_does_nothing_is_said(recipe, note):
    assert recipe_notes(recipe, init=False, teacher=False) == [note]


@pytest.mark.parametrize(
    ("copied", "note"),
    [
        (
            DistillationLoss(weight=0.0, temperature=2.0),
            "loss.distillation.temperature does nothing: loss.distillation.weight is 0",
        ),
        (
            DistillationLoss(relation_weight=0.0, relation_temperature=2.0),
            "loss.distillation.relation_temperature does nothing: loss.distillation.relation_weight is 0",
        ),
    ],
)
def test_what_is_not_copied_from_a_teacher_is_said(copied, note):
    assert recipe_notes(Recipe(loss=Loss(distillation=copied)), init=False, teacher=True) == [note]


def test_settings_that_do_something_are_not_mentioned():
    recipe = Recipe(
        mining=Mining(round_epochs=1.0, queries=9),
        augment=Augment(affine=0.5, rotation=20.0, color=0.5, hue=0.1, erase_max=0.2),
        loss=Loss(identity=IdentityLoss(kind="arcface", margin=0.5), circle=CircleLoss(weight=1.0, scale=9.0)),
        optim=Optim(kind="sgd", momentum=0.5, schedule="steps", steps=(9.0,), gamma=0.5, warmup_start=0.5),
        validation=Validation(every=1.0, patience=3, identities=0.2),
    )
    assert recipe_notes(recipe, init=False, teacher=False) == []


def test_each_stage_has_notes_of_its_own_and_only_the_first_has_random_weights():
    slow = Optim(freeze_epochs=5.0, momentum=0.5)
    recipe = replace(Recipe(optim=slow), before=Stage(optim=slow))
    idle = 'optim.momentum does nothing: optim.kind is "adam"'
    frozen = "optim.freeze_epochs holds a backbone of random weights still: give --init, or set it to 0"
    assert recipe_notes(recipe, init=False, teacher=False) == [f"[before] {idle}", f"[before] {frozen}", idle]
