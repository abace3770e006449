"""Training in eight bits: recipes, runs that are broken off, what they leave, and what they refuse."""

import logging
import re
from dataclasses import replace

import pytest
import torch
from quantized_runs import drawn_once, tiny_rounding, unexported
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_runs import RECIPE, TINY, interrupted, log_rows, tensors, train_in_pieces

from reidkit.architecture import ResNetSpec
from reidkit.bundle import Bundle
from reidkit.calibration import Range
from reidkit.errors import ConfigError, ModelError, TrainingError
from reidkit.models.checkpoint import load_checkpoint, load_deployed, load_floats, load_ranges
from reidkit.train.callbacks import Callbacks
from reidkit.train.loop import train
from reidkit.train.quantization import Quantization
from reidkit.train.recipe import Recipe, Stage, load_recipe
from reidkit.train.settings import DistillationLoss, IdentityLoss, Loss, Optim, TripletLoss, Validation
from reidkit.types import InputSpec

pytestmark = pytest.mark.usefixtures("narrow_networks")

BITS = replace(
    RECIPE,
    quantization=Quantization("tensorrt", momentum=0.5, freeze_after=0.5, images=12),
    loss=Loss(
        identity=IdentityLoss(weight=0.0),
        triplet=TripletLoss(margin="soft"),
        distillation=DistillationLoss(weight=0.0),
    ),
    optim=Optim(epochs=0.7, lr=1e-3, warmup_epochs=0.0, ema=0.5),
)
"""Four steps."""


@pytest.fixture(scope="module", autouse=True)
def _drawn_once():
    with drawn_once():
        yield


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, narrow_networks) -> Bundle:
    return unexported(tmp_path_factory.mktemp("float"))


def learn(split, bundle, out, recipe=BITS, **options):
    return train(split, recipe, out, **{"init": bundle.path, "rounding": tiny_rounding(), **options})


def test_a_run_leaves_floats_and_ranges(split, bundle, tmp_path):
    notes = []
    rounding = tiny_rounding(floats=("a.layer.in.float",))
    run = learn(split, bundle, tmp_path / "run", rounding=rounding, callbacks=Callbacks(on_note=notes.append))
    assert "eight bits as tensorrt: ranges of 11 values measured on 12 training crops" in notes
    # The bundle teaches itself.
    assert "teacher: only relations are copied, as loss.distillation.weight is 0" in notes
    assert all(float(row["relations"]) > 0 for row in log_rows(tmp_path / "run"))

    model, facts = load_checkpoint(run.checkpoint)
    assert facts.architecture == TINY
    assert facts.provenance.init == facts.provenance.teacher
    ranges = load_ranges(run.checkpoint)
    assert ranges is not None
    assert load_floats(run.checkpoint) == rounding.floats
    assert ranges.keys() == {name for layer in tiny_rounding().layers for name in (layer.input, layer.output)} - {None}
    assert all(given.low <= 0 < given.high for given in ranges.values())
    # It has learned, from where the bundle is: before, they agree; now, not far from there.
    before = load_deployed(bundle).model
    x = torch.randn(4, 3, 32, 16)
    with torch.no_grad():
        near = torch.nn.functional.cosine_similarity(model(x), before(x))
    assert (near > 0.9).all()
    assert (near < 1).any()
    for name, tensor in model.state_dict().items():
        if name.startswith("backbone") and name.endswith("running_mean"):
            assert not tensor.any()  # folded


def test_no_ranges_where_nothing_was_rounded(split, tmp_path):
    run = train(split, RECIPE, tmp_path / "run")
    assert load_ranges(run.checkpoint) is None
    with safe_open(run.checkpoint, framework="pt") as file:
        assert set(file.metadata()) == {"reidkit"}


@pytest.mark.parametrize("ranges", ["ema", "learned"])
def test_a_run_in_pieces_ends_with_the_same_bits(split, bundle, tmp_path, ranges):
    recipe = replace(
        BITS, quantization=replace(BITS.quantization, ranges=ranges), validation=Validation(0.4, "held-out", 0.34)
    )
    whole = learn(split, bundle, tmp_path / "whole", recipe)
    options = {"init": bundle.path, "rounding": tiny_rounding()}
    parts, pieces = train_in_pieces(split, recipe, tmp_path / "parts", every=2, **options)
    assert pieces > 1
    assert load_ranges(parts.checkpoint) == load_ranges(whole.checkpoint)
    ours, theirs = tensors(parts.checkpoint), tensors(whole.checkpoint)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_ranges_that_follow_are_frozen_in_time_and_learned_ones_learn(split, bundle, tmp_path):
    given = dict.fromkeys(["backbone.conv1:input", "backbone.layer4.0.conv1:output"], Range(-1.0, 5.0))
    rounding = tiny_rounding(ranges=given)

    def after(name, **changes):
        quantization = replace(BITS.quantization, **changes)
        recipe = replace(BITS, quantization=quantization, optim=replace(BITS.optim, ema=0.0))
        return load_ranges(learn(split, bundle, tmp_path / name, recipe, rounding=rounding).checkpoint)

    def are(ranges):
        return all(ranges[name].high == pytest.approx(5.0, rel=2**-9) for name in given)

    assert are(after("frozen", freeze_after=0.0))
    assert not are(after("follows", freeze_after=1.0))
    learned = after("learned", ranges="learned")
    assert learned["backbone.conv1:input"].high != pytest.approx(5.0, rel=1e-6)
    assert learned["backbone.conv1:input"].high == pytest.approx(5.0, rel=0.05)


# -- recipes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["cpu", "tensorrt"])
def test_the_recipes_that_come_along_take_what_the_bundle_has(engine):
    model, input_ = replace(TINY, backbone=ResNetSpec(depth=50)), InputSpec(96, 48, resize="bilinear")
    recipe = load_recipe(f"qat-{engine}", begins_with=(model, input_))
    assert (recipe.model, recipe.input) == (model, input_)
    assert recipe.quantization == Quantization(engine)
    assert recipe.loss.identity.weight == recipe.loss.distillation.weight == 0
    assert recipe.loss.distillation.relation_weight > 0
    assert recipe.optim.epochs <= 10
    told = load_recipe(f"qat-{engine}", overrides=["input.height=128"], begins_with=(model, input_))
    assert told.input == replace(input_, height=128)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"momentum": 1.0}, r"quantization\.momentum is out of range\n  got: 1\.0\n  expected: 0 or above, below 1"),
        ({"freeze_after": 1.5}, r"quantization\.freeze_after is out of range\n  got: 1\.5\n  expected: 0 to 1"),
        ({"images": 0}, r"quantization\.images is out of range\n  got: 0\n  expected: at least 1"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        Quantization(**changes)


def test_keys_and_values_that_cannot_be(tmp_path):
    path = tmp_path / "mine.toml"
    for text, message in (
        ("momentun = 0.9", r"Unknown key 'quantization\.momentun'[\s\S]*did you mean 'momentum'"),
        ('engine = "gpu"', r"quantization\.engine: 'gpu'[\s\S]*one of cpu, tensorrt"),
    ):
        path.write_text(f"[quantization]\n{text}\n")
        with pytest.raises(ConfigError, match=message):
            load_recipe(path)
    with pytest.raises(ConfigError, match=r"one stage\n  got: a table \[before\]"):
        Recipe(quantization=Quantization(), before=Stage())
    with pytest.raises(ConfigError, match=r"needs float32\n  got: amp bfloat16\n  to do: --set amp=off"):
        Recipe(quantization=Quantization(), amp="bfloat16")


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_it_goes_on_from_a_bundle_or_not_at_all(split, bundle, tmp_path):
    file = bundle.path / "weights.safetensors"
    for init, got in ((None, "no --init"), (file, re.escape(f"{file}, which is none"))):
        with pytest.raises(
            ConfigError, match=rf"goes on from a bundle\n  got: {got}\n[\s\S]*to do: train in floats first"
        ):
            learn(split, bundle, tmp_path / "run", init=init)
    assert not (tmp_path / "run").exists()


def test_it_needs_the_places_of_its_own_engine(split, bundle, tmp_path):
    for rounding, got in ((None, "none"), (replace(tiny_rounding(), engine="cpu"), "those of cpu")):
        with pytest.raises(ConfigError, match=rf"where the engine rounds\n  got: {got}\n  expected: those of tensorrt"):
            learn(split, bundle, tmp_path / "run", rounding=rounding)


def test_a_recipe_for_floats_has_no_use_for_places(split, tmp_path):
    with pytest.raises(
        ConfigError, match=r"trains in floats[\s\S]*got: rounding as of tensorrt\n[\s\S]*leave `rounding` out"
    ):
        train(split, RECIPE, tmp_path / "run", rounding=tiny_rounding())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "got", "expected"),
    [
        ({"height": 48}, r"input\.height = 48", r"input\.height = 32"),
        (
            {"resize": "bilinear", "color": "bgr"},
            r"input\.resize = bilinear, input\.color = bgr",
            r"input\.resize = bicubic, input\.color = rgb",
        ),
        ({"std": (1.0, 1.0, 1.0)}, r"input\.std = \[1\.0, 1\.0, 1\.0\]", r"input\.std = \[0\.229, 0\.224, 0\.225\]"),
    ],
)
def test_another_input_than_the_bundles(split, bundle, tmp_path, changes, got, expected):
    recipe = replace(BITS, input=replace(BITS.input, **changes))
    with pytest.raises(
        ConfigError, match=rf"float\.reid\n  got: {got}\n  expected: {expected}\n  to do: leave \[input\] out"
    ):
        learn(split, bundle, tmp_path / "run", recipe)


def test_another_network_than_the_bundles(split, bundle, tmp_path):
    recipe = replace(BITS, model=replace(TINY, backbone=ResNetSpec(ibn="none")))
    with pytest.raises(
        ConfigError, match=r"The recipe's network is not that of .*float\.reid\n[\s\S]*to do: leave --model"
    ):
        learn(split, bundle, tmp_path / "run", recipe)


def test_a_state_of_other_grids_is_refused(split, bundle, tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    with interrupted(), pytest.raises(KeyboardInterrupt):
        learn(split, bundle, tmp_path / "run")
    rounding = tiny_rounding()
    first = replace(rounding.layers[0], input="backbone.other:input")
    other = replace(rounding, layers=(first, *rounding.layers[1:]))
    with pytest.raises(TrainingError, match=r"does not fit this run\n  got: tensors of another network"):
        learn(split, bundle, tmp_path / "run", rounding=other, resume=True)


def test_ranges_that_nobody_wrote(split, tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors", {"reidkit.ranges": '{"a": {"low": 1.0, "high": 2.0}}'})
    with pytest.raises(
        ModelError, match=r"x\.safetensors holds ranges that this reidkit did not write\n  got: A range cannot be this"
    ):
        load_ranges(tmp_path / "x.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors", {"reidkit.floats": '{"a": 1}'})
    with pytest.raises(ModelError, match=r"x\.safetensors holds no layers in float that this reidkit wrote"):
        load_floats(tmp_path / "x.safetensors")
