"""Training runs: a small one that learns, and every way in which one stops."""

import csv
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image

from reidkit.architecture import HeadSpec, ModelSpec, ResNetSpec
from reidkit.errors import DataError, ImageError, ModelError, OutputError, RuntimeMissing, TrainingError
from reidkit.models.checkpoint import load_checkpoint
from reidkit.models.model import EmbeddingModel, Preprocess
from reidkit.train import loop
from reidkit.train.loop import StepReport, learning_rate, train
from reidkit.train.recipe import Augment, Batches, Loss, Optim, Recipe
from reidkit.types import Crop, InputSpec, Split

PEOPLE, PICTURES = 6, 6
RECIPE = Recipe(
    input=InputSpec(32, 16),
    batches=Batches(4, 4),
    augment=Augment(flip=0.5, pad=1, color=0.0, erase=0.0),
    optim=Optim(epochs=1.3, lr=1e-3, warmup_epochs=0.5),
    amp="off",
)
"""Three steps of 16 crops out of 36."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Six people in coats of two colours, under light and noise that change from picture to picture."""
    folder, rng, crops = tmp_path_factory.mktemp("people"), np.random.default_rng(0), []
    for pid, colors in enumerate(rng.uniform(40, 215, (PEOPLE, 2, 3))):
        for i in range(PICTURES):
            picture = np.repeat(colors, 16, axis=0)[:, None].repeat(16, axis=1)
            picture = picture * rng.uniform(0.7, 1.3) + rng.normal(0, 25, picture.shape)
            path = folder / f"{pid}_{i}.png"
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path)
            crops.append(Crop(path, pid * 10, i))
    return tuple(crops)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Crops this small are not worth sharing out, least of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def split(pictures, tmp_path):
    return Split("folder", tmp_path / "people", train=pictures)


def weights(run):
    return load_checkpoint(run.checkpoint)[0].state_dict()


def log_rows(run):
    with (run.checkpoint.parent / "log.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


# -- the schedule ------------------------------------------------------------------------------------------------------


def test_learning_rate_at_its_corners():
    def rate(epoch):
        return learning_rate(epoch, epochs=120.0, peak=1e-3, warmup=10.0)

    assert rate(0.0) == pytest.approx(1e-5)
    assert rate(5.0) == pytest.approx((1e-5 + 1e-3) / 2)
    assert rate(10.0) == pytest.approx(1e-3)
    assert rate(9.999999) == pytest.approx(1e-3, rel=1e-5)
    assert rate(65.0) == pytest.approx(5e-4)  # half way down
    assert rate(37.5) == pytest.approx(1e-3 * (1 + math.cos(math.pi / 4)) / 2)
    assert rate(120.0) == pytest.approx(0.0, abs=1e-15)
    assert rate(130.0) == pytest.approx(0.0, abs=1e-15)
    rates = [rate(e / 10) for e in range(1201)]
    assert np.argmax(rates) == 100


def test_learning_rate_without_and_with_too_much_warm_up():
    assert learning_rate(0.0, epochs=10.0, peak=2.0, warmup=0.0) == 2.0
    # Warm-up is at most half of the run.
    assert learning_rate(5.0, epochs=10.0, peak=2.0, warmup=50.0) == pytest.approx(2.0)
    assert learning_rate(2.5, epochs=10.0, peak=2.0, warmup=50.0) == pytest.approx(2.0 * 0.505)
    assert learning_rate(10.0, epochs=10.0, peak=2.0, warmup=50.0) == pytest.approx(0.0)


# -- a run that learns -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_small_run_learns_people_apart(split, tmp_path):
    held_out = [crop for crop in split.train if crop.camid == 0]
    learned_from = tuple(crop for crop in split.train if crop.camid != 0)
    recipe = replace(RECIPE, optim=Optim(epochs=12.0, lr=1e-3, warmup_epochs=2.0))
    reports = []
    run = train(replace(split, train=learned_from), recipe, tmp_path / "run", report_every=4, on_step=reports.append)
    assert run.steps == round(12 * 30 / 16) == reports[-1].step
    assert (run.identities, run.crops) == (PEOPLE, 30)
    assert reports[-1].loss < 0.7 * reports[0].loss
    assert reports[-1].identity_loss < 0.7 * math.log(PEOPLE)  # what a guess costs
    model, facts = load_checkpoint(run.checkpoint)

    def logits(crops):
        pixels = np.stack([np.asarray(Image.open(crop.path)) for crop in crops])
        with torch.inference_mode():
            return model.training_outputs(Preprocess(facts.input)(torch.from_numpy(pixels)))[1].argmax(dim=1).numpy()

    right = (logits(held_out) == np.array([crop.pid // 10 for crop in held_out])).mean()
    assert right >= 0.8  # a guess gets a sixth


def test_what_a_run_leaves_behind(split, tmp_path):
    reports, decoded = [], []
    run = train(
        split,
        RECIPE,
        tmp_path / "deep" / "run",
        task="vehicle",
        report_every=2,
        on_decode=lambda done, total: decoded.append((done, total)),
        on_step=reports.append,
    )
    assert sorted(file.name for file in run.checkpoint.parent.iterdir()) == ["log.csv", "model.safetensors"]
    assert (run.identities, run.crops, run.steps) == (PEOPLE, 36, 3)
    assert run.seconds > 0
    assert decoded == [(i + 1, 36) for i in range(36)]

    columns = ["step", "steps", "epoch", "loss", "identity_loss", "triplet_loss", "lr", "images_per_second"]
    rows = log_rows(run)
    assert list(rows[0]) == columns == [field.name for field in fields(StepReport)]
    assert [row["step"] for row in rows] == ["2", "3"]  # every second, and the last
    assert [StepReport(*(type(getattr(reports[0], c))(row[c]) for c in columns)) for row in rows] == reports
    last = reports[-1]
    assert (last.steps, last.epoch) == (3, pytest.approx(1.3))
    assert last.loss == pytest.approx(last.identity_loss + last.triplet_loss, rel=1e-5)
    assert last.lr == pytest.approx(learning_rate(1.3 * 2 / 3, epochs=1.3, peak=1e-3, warmup=0.5))

    model, facts = load_checkpoint(run.checkpoint)
    assert model.heads.weight.shape == (PEOPLE, 512)
    assert (facts.task, facts.input) == ("vehicle", RECIPE.input)
    assert facts.provenance.source == "run"
    assert facts.provenance.dataset == "folder people train: 6 identities, 36 crops"
    assert facts.provenance.framework == f"torch {torch.__version__}"
    assert facts.provenance.recipe["optim"]["lr"] == 1e-3
    assert str(tmp_path) not in repr(facts)


def test_the_seed_decides_every_bit(split, tmp_path):
    recipe = replace(RECIPE, augment=Augment(flip=0.5, pad=2, color=0.2, erase=0.5), optim=Optim(epochs=0.9, lr=1e-3))
    first, again = (weights(train(split, recipe, tmp_path / name)) for name in ("first", "again"))
    other = weights(train(split, replace(recipe, seed=1), tmp_path / "other"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["backbone.conv1.weight"], other["backbone.conv1.weight"])


def test_the_losses_and_the_weights_are_what_the_recipe_says(split, tmp_path):
    reports = []
    recipe = replace(RECIPE, loss=Loss(margin="soft", triplet_weight=0.25), optim=Optim(epochs=0.1))
    train(split, recipe, tmp_path / "run", on_step=reports.append)
    (report,) = reports
    assert report.step == report.steps == 1  # at least one
    assert report.loss == pytest.approx(report.identity_loss + 0.25 * report.triplet_loss, rel=1e-5)


def test_biases_and_norms_do_not_decay_and_the_neck_bias_is_not_trained():
    model = EmbeddingModel(ModelSpec(head=HeadSpec(gem_learned=True)), identities=3)
    decayed, kept = loop._decayed(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    tables = {names[id(p)] for p in decayed["params"]}
    assert tables == {name for name, p in model.named_parameters() if "conv" in name or "downsample.0" in name} | {
        "heads.weight"
    }
    assert {names[id(p)] for p in kept["params"]} == set(names.values()) - tables - {"heads.bottleneck.0.bias"}


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_what_is_shifted_in_is_zero_after_normalisation(split, tmp_path, monkeypatch, color):
    seen = []
    spec = InputSpec(32, 16, color=color, mean=(0.2, 0.4, 0.6))
    monkeypatch.setattr(loop, "_step", lambda model, optimizer, x, *_: seen.append(x) or (torch.zeros(()),) * 3)
    recipe = replace(RECIPE, input=spec, augment=Augment(flip=0.0, pad=15, color=0.0, erase=1.0))
    train(split, recipe, tmp_path / "run")
    blank = (seen[0].abs() < 1e-5).all(dim=1)
    assert 0.2 < blank.float().mean() < 0.9


# -- runs that stop ----------------------------------------------------------------------------------------------------


COLUMNS = "step,steps,epoch,loss,identity_loss,triplet_loss,lr,images_per_second"


def nothing_in(folder):
    return not folder.exists() or not list(folder.iterdir())


def only_a_log(folder):
    """The steps in the log, which must be all that there is."""
    assert [file.name for file in folder.iterdir()] == ["log.csv"]
    header, *rows = (folder / "log.csv").read_text().splitlines()
    assert header == COLUMNS
    return [int(row.split(",")[0]) for row in rows]


def test_nothing_to_train_on(split, tmp_path):
    with pytest.raises(DataError, match=r"people has no crops to train on\n  got: format folder\n  expected: a train"):
        train(replace(split, train=()), RECIPE, tmp_path / "run")
    assert nothing_in(tmp_path / "run")


def test_too_few_people_are_refused_before_the_decoding(split, tmp_path):
    alone = replace(split, train=tuple(crop for crop in split.train if crop.pid == 0))

    def on_decode(done, total):
        raise AssertionError("decoded before the check")

    text = r"Too few identities for a batch\n  got: 1 identities\n  expected: at least 4\n  to do: train on more people"
    with pytest.raises(TrainingError, match=text):
        train(alone, RECIPE, tmp_path / "run", on_decode=on_decode)
    assert nothing_in(tmp_path / "run")


def test_a_picture_that_cannot_be_decoded_is_named(split, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(split.train[0].path.read_bytes()[:200])
    crops = (*split.train[:9], replace(split.train[9], path=broken), *split.train[10:])
    with pytest.raises(ImageError, match=r"broken\.png is truncated or damaged"):
        train(replace(split, train=crops), RECIPE, tmp_path / "run")
    assert only_a_log(tmp_path / "run") == []


def test_a_loss_that_is_no_number_stops_the_run_and_the_log_stays(split, tmp_path, monkeypatch):
    step, calls = loop._step, []

    def overflowing(*arguments):
        losses = step(*arguments)
        calls.append(losses)
        return losses if len(calls) < 5 else tuple(loss * math.nan for loss in losses)

    monkeypatch.setattr(loop, "_step", overflowing)
    recipe = replace(RECIPE, optim=Optim(epochs=4.0))
    text = r"The loss stopped being a number by step 6\n  got: identity .*\n  expected: finite losses\n.*optim\.lr=1e-4"
    with pytest.raises(TrainingError, match=text):
        train(split, recipe, tmp_path / "run", report_every=2)
    assert only_a_log(tmp_path / "run") == [2, 4]


def test_too_high_a_learning_rate_ends_so(split, tmp_path):
    recipe = replace(RECIPE, optim=Optim(epochs=4.0, lr=1e30, warmup_epochs=0.0))
    with pytest.raises(TrainingError, match="The loss stopped being a number by step"):
        train(split, recipe, tmp_path / "run", report_every=2)


def test_weights_that_the_last_step_broke_are_not_saved(split, tmp_path, monkeypatch):
    step = torch.optim.Adam.step

    def broken_step(self, *arguments):
        step(self, *arguments)
        self.param_groups[0]["params"][1].data[0, 0] = torch.nan

    monkeypatch.setattr(torch.optim.Adam, "step", broken_step)
    text = (
        r"1 weights are not finite after step 1\n  got: backbone\.layer1\.0\.conv1\.weight\n  expected: finite weights"
    )
    with pytest.raises(TrainingError, match=text):
        train(split, replace(RECIPE, optim=Optim(epochs=0.1)), tmp_path / "run")
    assert only_a_log(tmp_path / "run") == [1]


@pytest.mark.parametrize("seen", [0, 2])
def test_a_graphics_card_that_is_not_there(split, tmp_path, monkeypatch, seen):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    name = f"cuda:{seen}"
    with pytest.raises(
        RuntimeMissing, match=rf"PyTorch sees no such CUDA device\n  got: {name}\n  to do: say --device"
    ):
        train(split, RECIPE, tmp_path / "run", device=name)
    assert nothing_in(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "message"), [("gpu", "Unknown device 'gpu'"), ("meta", "Training does not run on 'meta'")]
)
def test_a_device_that_nobody_has(split, tmp_path, name, message):
    with pytest.raises(RuntimeMissing, match=rf"{message}\n  expected: cpu, cuda or cuda:N"):
        train(split, RECIPE, tmp_path / "run", device=name)


def test_the_log_is_there_as_the_run_goes_and_stays_when_it_is_interrupted(split, tmp_path):
    out, seen = tmp_path / "run", []

    def interrupt(report):
        seen.append(only_a_log(out))
        if report.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(split, RECIPE, out, report_every=1, on_step=interrupt)
    assert seen == [[1], [1, 2]]
    assert only_a_log(out) == [1, 2]


def test_an_earlier_checkpoint_is_refused_before_the_work(split, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "model.safetensors").write_bytes(b"of an earlier run")
    (out / "log.csv").write_text("of an earlier run")

    def on_decode(done, total):
        raise AssertionError("decoded before the check")

    text = r"run.model\.safetensors already exists\n  to do: choose another name, or say --overwrite"
    with pytest.raises(OutputError, match=text):
        train(split, RECIPE, out, on_decode=on_decode)
    assert {file.read_bytes() for file in out.iterdir()} == {b"of an earlier run"}


def test_with_overwrite_an_earlier_checkpoint_stays_until_the_new_one_is_whole(split, tmp_path):
    out, earlier = tmp_path / "run", b"of an earlier run"
    out.mkdir()
    (out / "model.safetensors").write_bytes(earlier)

    def interrupt(report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(split, RECIPE, out, overwrite=True, on_step=interrupt)
    assert (out / "model.safetensors").read_bytes() == earlier
    run = train(split, RECIPE, out, overwrite=True)
    assert len(weights(run)) > 1
    assert len(log_rows(run)) == 1


def test_the_checkpoint_is_no_more_private_than_the_log(split, tmp_path):
    run = train(split, replace(RECIPE, optim=Optim(epochs=0.1)), tmp_path / "run")
    log = run.checkpoint.parent / "log.csv"
    assert run.checkpoint.stat().st_mode == log.stat().st_mode


def test_decoding_stops_when_something_fails(split, tmp_path, monkeypatch):
    closed = []

    def stream(files, spec):
        try:
            yield from loop_stream(files, spec)
        finally:
            closed.append(True)

    loop_stream = loop.stream_crops
    monkeypatch.setattr(loop, "stream_crops", stream)

    def interrupt(done, total):
        raise KeyboardInterrupt

    # The traceback, which `pytest.raises` holds, holds the frame and with it the generator.
    with pytest.raises(KeyboardInterrupt) as caught:
        train(split, RECIPE, tmp_path / "run", on_decode=interrupt)
    assert closed == [True], caught


def test_a_place_that_cannot_be_written_to_is_refused_before_the_work(split, tmp_path):
    (tmp_path / "run").write_text("a file")

    def on_decode(done, total):
        raise AssertionError("worked before the check")

    with pytest.raises(OutputError, match=r"Cannot write .*run"):
        train(split, RECIPE, tmp_path / "run", on_decode=on_decode)
    assert (tmp_path / "run").read_text() == "a file"


# -- starting from somebody's weights ----------------------------------------------------------------------------------


def test_a_run_starts_from_the_backbone_of_a_checkpoint(split, tmp_path):
    first = train(split, RECIPE, tmp_path / "first")
    still = replace(RECIPE, seed=9, optim=Optim(epochs=0.5, lr=1e-12, warmup_epochs=0.0, weight_decay=0.0))
    second = train(split, still, tmp_path / "second", init=first.checkpoint)
    fresh = train(split, still, tmp_path / "fresh")
    name = "backbone.layer3.0.conv1.weight"
    torch.testing.assert_close(weights(second)[name], weights(first)[name], rtol=0, atol=1e-6)
    assert not torch.allclose(weights(fresh)[name], weights(first)[name], atol=1e-3)
    assert not torch.equal(weights(second)["heads.weight"], weights(first)["heads.weight"])  # other people, perhaps
    init = load_checkpoint(second.checkpoint)[1].provenance.init
    assert init is not None
    assert init.startswith("model.safetensors, sha256 ")


def test_a_backbone_that_is_another_is_refused_before_the_work(split, tmp_path):
    first = train(split, RECIPE, tmp_path / "first")
    plain = replace(RECIPE, model=ModelSpec(ResNetSpec(ibn="none")))
    with pytest.raises(ModelError, match=r"do not fit the backbone that is to be trained: bn1 holds IBN-a there"):
        train(split, plain, tmp_path / "second", init=first.checkpoint)
    assert not (tmp_path / "second").exists()
