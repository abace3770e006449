"""Recipes: those that come along, files, overrides, and what a recipe as a whole refuses."""

import json
import math
from dataclasses import replace
from importlib import resources

import pytest
import torch
from tiny_runs import narrow_networks, tensors

from reidkit.architecture import CATALOGUE, HeadSpec, ModelSpec, OSNetSpec, ResNetSpec
from reidkit.config import from_dict, to_dict
from reidkit.errors import ConfigError
from reidkit.models.model import build_model
from reidkit.train.callbacks import Callbacks
from reidkit.train.loop import train
from reidkit.train.recipe import Recipe, Stage, load_recipe
from reidkit.train.settings import Augment, Batches, IdentityLoss, Loss, Mining, Optim, TripletLoss
from reidkit.types import InputSpec

NAMES = sorted(
    entry.name.removesuffix(".toml")
    for entry in (resources.files("reidkit.train") / "recipes").iterdir()
    if entry.name.endswith(".toml")
)
EIGHT_BITS = [name for name in NAMES if name.startswith("qat-")]
"""They go on from a bundle; see test_quantization.py."""


# -- the recipes that come along ---------------------------------------------------------------------------------------


def test_which_come_along():
    assert {"bag-of-tricks", "agw", "sbs", "from-scratch", "two-stage", "distillation", "mobile", "demo"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_builds_its_network(name):
    recipe = load_recipe(name)
    assert recipe.seed == 0
    assert recipe.validation.every == 0  # all identities are learned unless somebody asks
    with torch.device("meta"):
        network = build_model(recipe.model, identities=480)
        pixels = torch.zeros(2, 3, recipe.input.height, recipe.input.width)
    outputs = network.training_outputs(pixels)
    assert {head.classifier.shape[0] for head in outputs} == {480}
    assert len(outputs) == (8 if recipe.model.branches == "mgn" else 1)
    assert all(stage.batches.size in (24, 64) for stage in recipe.stages)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_says_what_it_is_for(name):
    text = (resources.files("reidkit.train") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    assert text.startswith("# ")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in EIGHT_BITS])
def test_every_recipe_trains(split, tmp_path, name):
    """As it is, but for small crops, small batches and narrow ResNets."""
    high = 96 if load_recipe(name).model.branches == "mgn" else 32
    stages = ("", "before.") if load_recipe(name).before else ("",)
    overrides = [f"input.height={high}", "input.width=32"]
    for stage in stages:
        small = {"batches.identities": 3, "batches.crops": 2, "augment.pad": 2, "optim.epochs": 0.2}
        overrides += [f"{stage}{key}={value}" for key, value in small.items()]
    recipe = load_recipe(name, overrides=overrides)
    if recipe.mining.round_epochs:
        recipe = replace(recipe, batches=Batches(3, 2), mining=replace(recipe.mining, round_epochs=0.1))
    reports = []
    with narrow_networks():
        run = train(split, recipe, tmp_path / "run", report_every=1, callbacks=Callbacks(on_step=reports.append))
    assert run.steps == len(recipe.stages)
    assert all(math.isfinite(loss) for report in reports for loss in report.losses.values())
    assert all(torch.isfinite(tensor).all() for tensor in tensors(run.checkpoint).values())


def test_the_bag_of_tricks_is_that_of_the_paper():
    recipe = load_recipe("bag-of-tricks")
    assert recipe.input == InputSpec(256, 128)
    assert recipe.model.backbone == ResNetSpec(depth=18, ibn="a", last_stride=1)
    assert recipe.model.head.pooling == "average"
    assert recipe.batches == Batches(16, 4)
    assert recipe.loss == Loss(identity=IdentityLoss(smoothing=0.1), triplet=TripletLoss(margin=0.3))
    assert recipe.optim == Optim(
        epochs=120.0,
        lr=3.5e-4,
        kind="adam",
        weight_decay=5e-4,
        schedule="steps",
        steps=(40.0, 90.0),
        gamma=0.1,
        warmup_epochs=10.0,
        warmup_start=0.1,
    )


def test_the_demo_is_small():
    recipe = load_recipe("demo")
    assert (recipe.input.height, recipe.input.width) == (64, 32)
    assert recipe.optim.epochs <= 12


def test_the_first_of_two_stages_only_classifies():
    recipe = load_recipe("two-stage")
    assert recipe.stages == (recipe.before, recipe.stages[1])
    first, second = recipe.stages
    assert not first.loss.compares
    assert first.mining.round_epochs == 0
    assert second.loss.compares
    assert second.mining.round_epochs > 0
    assert second == Stage(recipe.batches, recipe.mining, recipe.augment, recipe.loss, recipe.optim)


# -- names and files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nearest"), [("bag-of-trick", "bag-of-tricks"), ("from_scratch", "from-scratch"), ("dmeo", "demo")]
)
def test_an_unknown_recipe_suggests_the_nearest(name, nearest):
    text = rf"Unknown recipe '{name}'\n  expected: one of {', '.join(NAMES)}\n.*'{nearest}'"
    with pytest.raises(ConfigError, match=text):
        load_recipe(name)


def test_a_name_like_nothing_suggests_nothing():
    with pytest.raises(ConfigError, match=rf"Unknown recipe 'x'\n  expected: one of {', '.join(NAMES)}$"):
        load_recipe("x")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"No such file: .*mine\.toml\n  to do: check the path"):
        load_recipe(tmp_path / "mine.toml")


def test_a_file_that_is_no_toml(tmp_path):
    (tmp_path / "mine.toml").write_text("seed = \n")
    with pytest.raises(ConfigError, match=r"mine\.toml cannot be read as TOML"):
        load_recipe(tmp_path / "mine.toml")


def test_a_file_by_path_and_by_text(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'seed = 3\namp = "off"\n[optim]\nepochs = 2\nsteps = [1, 1.5]\n[loss.triplet]\nmargin = "soft"\n'
        "[model.head]\ngem_learned = true\n[before.optim]\nlr = 1\n"
    )
    recipe = load_recipe(path)
    assert recipe == load_recipe(str(path))
    assert recipe == Recipe(
        seed=3,
        amp="off",
        before=Stage(optim=Optim(lr=1.0)),
        optim=Optim(epochs=2.0, steps=(1.0, 1.5)),
        loss=Loss(triplet=TripletLoss(margin="soft")),
        model=ModelSpec(head=HeadSpec(gem_learned=True)),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim.lrr = 1e-3", r"Unknown key 'optim\.lrr'\n  expected: one of epochs, lr, .*\n.*did you mean 'lr'"),
        ("sed = 1", r"Unknown key 'sed'[\s\S]*did you mean 'seed'"),
        ("[augment]\nerasing = 0.5", r"Unknown key 'augment\.erasing'[\s\S]*did you mean 'erase'"),
        ("[loss.tripet]\nmargin = 0.3", r"Unknown key 'loss\.tripet'[\s\S]*did you mean 'triplet'"),
        ("[loss.triplet]\nmargn = 0.3", r"Unknown key 'loss\.triplet\.margn'[\s\S]*did you mean 'margin'"),
        ("[before.optim]\nepoch = 3", r"Unknown key 'before\.optim\.epoch'[\s\S]*did you mean 'epochs'"),
        ("[before]\nseed = 3", r"Unknown key 'before\.seed'"),  # a seed is of the whole run
        ("[loss]\nmargin = 0.3", r"Unknown key 'loss\.margin'"),
        ("[batches]\ncrops = 4.5", r"batches\.crops has the wrong type\n  got: 4\.5 \(float\)\n  expected: int"),
        ("[model.head]\ngem_learned = 1", r"model\.head\.gem_learned has the wrong type"),
        ('amp = "float17"', r"amp: 'float17'[\s\S]*one of auto, off, bfloat16, float16"),
        ("compile = 3", r"compile has the wrong type|compile: '3'"),
        ("optim = 5", r"optim has the wrong type\n  got: 5 \(int\)\n  expected: a table"),
        ('[loss.triplet]\nmargin = "none"', r"loss\.triplet\.margin: 'none'[\s\S]*soft"),
    ],
)
def test_a_key_or_value_that_cannot_be(tmp_path, text, message):
    (tmp_path / "mine.toml").write_text(text + "\n")
    with pytest.raises(ConfigError, match=message):
        load_recipe(tmp_path / "mine.toml")


def test_overrides():
    base = load_recipe("bag-of-tricks")
    recipe = load_recipe(
        "bag-of-tricks", overrides=["optim.epochs=3", "amp=off", "input.height=64", "loss.triplet.margin=soft"]
    )
    assert recipe == replace(
        base,
        optim=replace(base.optim, epochs=3.0),
        amp="off",
        input=replace(base.input, height=64),
        loss=replace(base.loss, triplet=replace(base.loss.triplet, margin="soft")),
    )
    staged = load_recipe("bag-of-tricks", overrides=["before.optim.epochs=2"])
    assert staged.before == Stage(optim=Optim(epochs=2.0))
    with pytest.raises(ConfigError, match=r"Unknown key 'optim\.epoch'[\s\S]*did you mean 'epochs'"):
        load_recipe("demo", overrides=["optim.epoch=3"])
    with pytest.raises(ConfigError, match=r"Cannot read the override 'optim\.epochs'\n  expected: NAME\.NAME=VALUE"):
        load_recipe("demo", overrides=["optim.epochs"])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Recipe(seed=-1), r"seed is out of range\n  got: -1\n  expected: at least 0"),
        (lambda: Recipe(input=InputSpec(16, 16)), r"too small to train on\n  got: 16x16\n  expected: at least 3x19"),
        (lambda: Recipe(input=InputSpec(64, 2)), r"too small to train on\n  got: 2x64"),
        (lambda: Recipe(augment=Augment(pad=128)), r"augment\.pad is out of range\n  got: 128\n.*shorter side, 128"),
        (lambda: Recipe(before=Stage(augment=Augment(pad=128))), r"augment\.pad is out of range\n  got: 128"),
    ],
)
def test_what_a_recipe_as_a_whole_refuses(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_the_smallest_input():
    recipe = Recipe(input=InputSpec(19, 3), augment=Augment(pad=2))
    assert recipe.stages == (Stage(augment=Augment(pad=2)),)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_survives_the_manifest(name):
    recipe = load_recipe(name, overrides=["loss.triplet.margin=soft", "seed=5"])
    assert from_dict(Recipe, json.loads(json.dumps(to_dict(recipe)))) == recipe


def test_a_named_network_takes_the_place_of_the_recipes():
    recipe = load_recipe("demo", model="osnet-x0.25", overrides=["model.head.relu=false", "seed=4"])
    named = CATALOGUE["osnet-x0.25"]
    assert isinstance(named.backbone, OSNetSpec)
    assert recipe.model == ModelSpec(named.backbone, replace(named.head, relu=False))
    assert (recipe.seed, recipe.optim) == (4, load_recipe("demo").optim)
    with pytest.raises(ConfigError, match=r"Unknown model 'osnet-x0\.2'"):
        load_recipe("demo", model="osnet-x0.2")


def test_a_recipe_is_what_it_trains_with_and_cannot_be_changed():
    recipe = Recipe()
    assert recipe.mining == Mining()
    with pytest.raises(AttributeError):
        recipe.seed = 2
