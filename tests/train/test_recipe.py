"""Recipes: those that come along, files, overrides, and every value that cannot be."""

import json
import math
from dataclasses import replace

import pytest

from reidkit.architecture import CATALOGUE, HeadSpec, ModelSpec, ResNetSpec
from reidkit.config import from_dict, to_dict
from reidkit.errors import ConfigError
from reidkit.train.recipe import Augment, Batches, Loss, Optim, Recipe, load_recipe
from reidkit.types import InputSpec


def test_the_baseline_recipe():
    recipe = load_recipe("baseline")
    assert recipe.input == InputSpec(256, 128)
    assert recipe.model == ModelSpec(
        ResNetSpec(depth=18, ibn="a", last_stride=1), HeadSpec(pooling="gem", gem_p=3.0, gem_learned=False)
    )
    assert (recipe.batches.identities, recipe.batches.crops) == (16, 4)
    assert (recipe.optim.epochs, recipe.optim.lr, recipe.optim.warmup_epochs) == (120.0, 7e-4, 10.0)
    assert (recipe.loss.label_smoothing, recipe.loss.margin) == (0.1, 0.3)


def test_the_demo_recipe_is_small():
    recipe = load_recipe("demo")
    assert (recipe.input.height, recipe.input.width) == (64, 32)
    assert recipe.optim.epochs == 12.0


@pytest.mark.parametrize(("name", "nearest"), [("baselin", "baseline"), ("dmeo", "demo")])
def test_an_unknown_recipe_suggests_the_nearest(name, nearest):
    with pytest.raises(
        ConfigError, match=rf"Unknown recipe '{name}'\n  expected: one of baseline, demo\n.*'{nearest}'"
    ):
        load_recipe(name)


def test_a_name_like_nothing_suggests_nothing():
    with pytest.raises(ConfigError, match=r"Unknown recipe 'x'\n  expected: one of baseline, demo$"):
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
        'seed = 3\namp = "off"\n[optim]\nepochs = 2\n[loss]\nmargin = "soft"\n[model.head]\ngem_learned = true\n'
    )
    recipe = load_recipe(path)
    assert recipe == load_recipe(str(path))
    assert recipe == Recipe(
        seed=3,
        amp="off",
        optim=Optim(epochs=2.0),
        loss=Loss(margin="soft"),
        model=ModelSpec(head=HeadSpec(gem_learned=True)),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "optim.lrr = 1e-3",
            r"Unknown key 'optim\.lrr'\n  expected: one of epochs, lr, .*\n  to do: did you mean 'lr'",
        ),
        ("sed = 1", r"Unknown key 'sed'[\s\S]*did you mean 'seed'"),
        ("[augment]\nerasing = 0.5", r"Unknown key 'augment\.erasing'[\s\S]*did you mean 'erase'"),
        ("[batches]\ncrops = 4.5", r"batches\.crops has the wrong type\n  got: 4\.5 \(float\)\n  expected: int"),
        ("[model.head]\ngem_learned = 1", r"model\.head\.gem_learned has the wrong type"),
        ('amp = "float16"', r"amp: 'float16'[\s\S]*one of auto, off, bfloat16"),
        ("optim = 5", r"optim has the wrong type\n  got: 5 \(int\)\n  expected: a table"),
        ('[loss]\nmargin = "none"', r"loss\.margin: 'none'[\s\S]*soft"),
    ],
)
def test_a_key_or_value_that_cannot_be(tmp_path, text, message):
    (tmp_path / "mine.toml").write_text(text + "\n")
    with pytest.raises(ConfigError, match=message):
        load_recipe(tmp_path / "mine.toml")


def test_overrides():
    recipe = load_recipe("baseline", overrides=["optim.epochs=3", "amp=off", "input.height=64", "loss.margin=soft"])
    base = load_recipe("baseline")
    assert recipe == replace(
        base,
        optim=replace(base.optim, epochs=3.0),
        amp="off",
        input=replace(base.input, height=64),
        loss=replace(base.loss, margin="soft"),
    )
    with pytest.raises(ConfigError, match=r"Unknown key 'optim\.epoch'[\s\S]*did you mean 'epochs'"):
        load_recipe("baseline", overrides=["optim.epoch=3"])
    with pytest.raises(ConfigError, match=r"Cannot read the override 'optim\.epochs'\n  expected: NAME\.NAME=VALUE"):
        load_recipe("baseline", overrides=["optim.epochs"])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Batches(identities=1), r"batches\.identities is out of range\n  got: 1\n  expected: at least 2"),
        (lambda: Batches(crops=1), r"batches\.crops is out of range\n  got: 1\n  expected: at least 2"),
        (lambda: Augment(flip=1.1), r"augment\.flip is out of range\n  got: 1\.1\n  expected: 0 to 1"),
        (lambda: Augment(color=-0.1), r"augment\.color is out of range\n  got: -0\.1\n  expected: 0 to 1"),
        (lambda: Augment(erase=math.nan), r"augment\.erase is out of range\n  got: nan"),
        (lambda: Augment(pad=-1), r"augment\.pad is out of range\n  got: -1\n  expected: at least 0"),
        (lambda: Loss(label_smoothing=2.0), r"loss\.label_smoothing is out of range\n  got: 2\.0"),
        (lambda: Loss(margin=-0.1), r"loss\.margin is out of range\n  got: -0\.1\n  expected: 0 or above"),
        (lambda: Loss(margin=math.nan), r"loss\.margin is out of range\n  got: nan"),
        (lambda: Loss(triplet_weight=math.inf), r"loss\.triplet_weight is out of range\n  got: inf"),
        (lambda: Optim(epochs=0.0), r"optim\.epochs is out of range\n  got: 0\.0\n  expected: above 0"),
        (lambda: Optim(epochs=math.inf), r"optim\.epochs is out of range\n  got: inf\n  expected: above 0, finite"),
        (lambda: Optim(lr=-1.0), r"optim\.lr is out of range\n  got: -1\.0"),
        (lambda: Optim(lr=math.nan), r"optim\.lr is out of range\n  got: nan"),
        (lambda: Optim(weight_decay=-1e-4), r"optim\.weight_decay is out of range"),
        (lambda: Optim(warmup_epochs=-1.0), r"optim\.warmup_epochs is out of range"),
        (lambda: Recipe(seed=-1), r"seed is out of range\n  got: -1\n  expected: at least 0"),
        (lambda: Recipe(input=InputSpec(16, 16)), r"too small to train on\n  got: 16x16\n  expected: at least 3x19"),
        (lambda: Recipe(input=InputSpec(64, 2)), r"too small to train on\n  got: 2x64"),
        (lambda: Recipe(augment=Augment(pad=128)), r"augment\.pad is out of range\n  got: 128\n.*shorter side, 128"),
    ],
)
def test_values_out_of_range(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_the_borders_are_in_range():
    Recipe(input=InputSpec(19, 3), augment=Augment(flip=1.0, pad=2, color=1.0, erase=1.0), batches=Batches(2, 2))
    Loss(label_smoothing=0.0, margin=0.0, triplet_weight=0.0)
    Optim(epochs=0.01, lr=1e-9, weight_decay=0.0, warmup_epochs=0.0)


def test_a_recipe_survives_the_manifest():
    recipe = load_recipe("demo", overrides=["loss.margin=soft", "seed=5"])
    assert from_dict(Recipe, json.loads(json.dumps(to_dict(recipe)))) == recipe


def test_a_named_network_takes_the_place_of_the_recipes():
    recipe = load_recipe("demo", model="osnet-x0.25", overrides=["model.head.relu=false", "seed=4"])
    named = CATALOGUE["osnet-x0.25"]
    assert recipe.model == ModelSpec(named.backbone, replace(named.head, relu=False))
    assert (recipe.seed, recipe.optim) == (4, load_recipe("demo").optim)
    with pytest.raises(ConfigError, match=r"Unknown model 'osnet-x0\.2'"):
        load_recipe("demo", model="osnet-x0.2")


def test_mgn_is_not_trained_here():
    with pytest.raises(ConfigError, match="MGN cannot be trained here yet, only loaded"):
        load_recipe("baseline", model="mgn-r50-ibn")
