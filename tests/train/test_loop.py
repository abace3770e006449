"""`train` as a whole: a run that learns, what it leaves behind, what it refuses, and where it may begin."""

import math
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import (
    PEOPLE,
    RECIPE,
    interrupted,
    log_rows,
    narrow_networks,
    split_of,
    tensors,
    with_optim,
)

from reidkit.architecture import HeadSpec, ModelSpec, OSNetSpec, ResNetSpec
from reidkit.errors import (
    ConfigError,
    DataError,
    ImageError,
    InputError,
    ModelError,
    OutputError,
    RuntimeMissing,
    TrainingError,
)
from reidkit.models.checkpoint import load_checkpoint
from reidkit.models.model import Preprocess
from reidkit.train.callbacks import Callbacks
from reidkit.train.loop import train
from reidkit.train.recipe import Stage
from reidkit.train.settings import Augment, Batches, DistillationLoss, Loss, Mining, TripletLoss, Validation
from reidkit.types import InputSpec

pytestmark = pytest.mark.usefixtures("narrow_networks")

SHORT = with_optim(RECIPE, epochs=0.3)
"""Two steps."""


def undecoded(done, total):
    raise AssertionError("decoded before the check")


UNDECODED = Callbacks(on_decode=undecoded)


def names_in(folder):
    return sorted(file.name for file in folder.iterdir())


def nothing_in(folder):
    return not folder.exists() or not list(folder.iterdir())


# -- a run that learns -------------------------------------------------------------------------------------------------


def test_a_small_run_learns_people_apart(split, tmp_path):
    held_out = [crop for crop in split.train if crop.camid == 0]
    learned_from = tuple(crop for crop in split.train if crop.camid != 0)
    recipe = replace(
        with_optim(RECIPE, kind="adam", epochs=30.0, lr=1e-2, warmup_epochs=2.0),
        batches=Batches(4, 3),
        augment=Augment(pad=1, erase=0.0),
    )
    reports = []
    callbacks = Callbacks(on_step=reports.append)
    run = train(replace(split, train=learned_from), recipe, tmp_path / "run", report_every=6, callbacks=callbacks)
    assert run.steps == round(30 * 30 / 12) == reports[-1].step
    assert (run.identities, run.crops) == (PEOPLE, 30)
    assert reports[-1].losses["loss"] < 0.7 * reports[0].losses["loss"]
    assert reports[-1].losses["identity"] < 0.7 * math.log(PEOPLE)  # what a guess costs
    model, facts = load_checkpoint(run.checkpoint)
    pixels = np.stack([np.asarray(Image.open(crop.path)) for crop in held_out])
    with torch.inference_mode():
        (head,) = model.training_outputs(Preprocess(facts.input)(torch.from_numpy(pixels)))
        chosen = (head.embedding @ head.classifier.T).argmax(dim=1).numpy()
    assert (chosen == np.array([crop.pid // 10 for crop in held_out])).mean() >= 0.8  # a guess gets a sixth


def test_what_a_run_leaves_behind(split, tmp_path):
    reports, decoded, notes = [], [], []
    callbacks = Callbacks(
        on_note=notes.append,
        on_decode=lambda done, total: decoded.append((done, total)),
        on_step=reports.append,
        on_measured=lambda measured: notes.append("measured"),
    )
    out = tmp_path / "deep" / "run"
    run = train(split, RECIPE, out, task="vehicle", report_every=3, callbacks=callbacks)
    assert names_in(out) == ["log.csv", "model.safetensors"]
    assert run.checkpoint == out / "model.safetensors"
    assert (run.identities, run.crops, run.steps, run.best) == (PEOPLE, 36, 4, None)
    assert run.seconds > 0
    assert decoded == [(i + 1, 36) for i in range(36)]
    assert notes == ["crops: 0 MB in memory"]

    rows = log_rows(out, without=())
    assert list(rows[0]) == [
        *("stage", "step", "epoch", "loss", "identity", "triplet", "lr"),
        *("images_per_second", "mean_ap", "rank1"),
    ]
    assert [row["step"] for row in rows] == ["3", "4"]  # every third, and the last
    assert [report.step for report in reports] == [3, 4]
    assert reports[-1].epoch == pytest.approx(0.7)

    model, facts = load_checkpoint(run.checkpoint)
    assert model.heads.weight.shape == (PEOPLE, 16)
    assert (facts.task, facts.input) == ("vehicle", RECIPE.input)
    assert len(facts.identities) == 64
    assert facts.provenance.source == "run"
    assert facts.provenance.dataset == "folder people train: 6 identities, 36 crops"
    assert str(tmp_path) not in repr(facts)
    # Weights are no more private than the log.
    assert run.checkpoint.stat().st_mode == (out / "log.csv").stat().st_mode


def test_what_a_run_in_two_stages_leaves_behind(split, tmp_path):
    stage = Stage(RECIPE.batches, augment=RECIPE.augment, loss=Loss(triplet=TripletLoss(weight=0.0)), optim=SHORT.optim)
    recipe = replace(SHORT, before=stage, validation=Validation(every=0.2, identities=0.34))
    run = train(split, recipe, tmp_path / "run", tensorboard=False)
    assert run.steps == 1 + 1
    assert names_in(tmp_path / "run") == ["before.safetensors", "last.safetensors", "log.csv", "model.safetensors"]
    assert (run.identities, run.crops) == (4, 24)  # two are held out
    _, facts = load_checkpoint(run.checkpoint)
    assert facts.provenance.dataset == "folder people train: 4 identities, 24 crops"
    before, last = (tensors(tmp_path / "run" / f"{name}.safetensors") for name in ("before", "last"))
    assert not torch.equal(before["heads.weight"], last["heads.weight"])
    assert [row["stage"] for row in log_rows(tmp_path / "run")] == ["1", "1", "2", "2"]
    assert all(row["triplet"] == "" for row in log_rows(tmp_path / "run") if row["stage"] == "1")


def test_the_seed_decides_every_bit(split, tmp_path):
    first, again = (tensors(train(split, SHORT, tmp_path / name).checkpoint) for name in ("first", "again"))
    other = tensors(train(split, replace(SHORT, seed=1), tmp_path / "other").checkpoint)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["backbone.conv1.weight"], other["backbone.conv1.weight"])


def test_losses_and_their_weights_are_what_the_recipe_says(split, tmp_path):
    reports = []
    loss = Loss(triplet=TripletLoss(weight=0.25, margin="soft"))
    recipe = replace(with_optim(RECIPE, epochs=0.1), loss=loss)
    train(split, recipe, tmp_path / "run", callbacks=Callbacks(on_step=reports.append))
    (report,) = reports
    assert report.step == report.steps == 1  # at least one
    assert report.losses["loss"] == pytest.approx(report.losses["identity"] + 0.25 * report.losses["triplet"], rel=1e-5)


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_what_is_shifted_in_is_zero_after_normalisation(split, tmp_path, monkeypatch, color):
    seen = []
    spec = InputSpec(32, 16, color=color, mean=(0.2, 0.4, 0.6))
    normalize = Preprocess.normalize
    monkeypatch.setattr(Preprocess, "normalize", lambda self, pixels: seen.append(normalize(self, pixels)) or seen[-1])
    recipe = replace(SHORT, input=spec, augment=Augment(flip=0.0, pad=15, erase=1.0))
    train(split, recipe, tmp_path / "run")
    blank = (seen[0].abs() < 1e-5).all(dim=1)
    assert 0.2 < blank.float().mean() < 0.9


def test_decoded_crops_are_kept(split, tmp_path):
    decoded = []
    callbacks = Callbacks(on_decode=lambda done, total: decoded.append(done))
    first = train(split, SHORT, tmp_path / "first", cache=tmp_path / "cache", callbacks=callbacks)
    assert len(decoded) == 36
    again = train(split, SHORT, tmp_path / "again", cache=tmp_path / "cache", callbacks=callbacks)
    assert decoded[36:] == [36]  # all at once
    one, other = tensors(first.checkpoint), tensors(again.checkpoint)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_events_for_tensorboard(split, tmp_path):
    pytest.importorskip("tensorboard")
    train(split, SHORT, tmp_path / "run", tensorboard=True)
    assert names_in(tmp_path / "run" / "tensorboard") == ["stage-1"]


def test_a_run_in_another_thread(split, tmp_path):
    handler, runs = signal.getsignal(signal.SIGINT), []
    thread = threading.Thread(target=lambda: runs.append(train(split, SHORT, tmp_path / "run")))
    thread.start()
    thread.join()
    assert runs[0].steps == 2
    assert signal.getsignal(signal.SIGINT) is handler


# -- data that cannot be learned from ----------------------------------------------------------------------------------


def test_nothing_to_train_on(split, tmp_path):
    with pytest.raises(DataError, match=r"people has no crops to train on\n  got: format folder\n  expected: a train"):
        train(replace(split, train=()), RECIPE, tmp_path / "run", callbacks=UNDECODED)
    assert nothing_in(tmp_path / "run")


@pytest.mark.parametrize(
    ("keep", "recipe", "message"),
    [
        (lambda c: c.pid == 0, RECIPE, r"There is only one identity to train on\n  got: 6 crops of one identity"),
        (lambda c: c.pid < 20, RECIPE, r"Too few identities for a batch\n  got: 2 identities\n  expected: at least 3"),
        (lambda c: c.camid == 3, RECIPE, r"No identity has two crops, so no loss can pull crops"),
        (
            lambda c: c.pid < 30,
            replace(RECIPE, before=Stage(batches=Batches(4, 2), augment=RECIPE.augment)),
            r"Too few identities for a batch\n  got: 3 identities\n  expected: at least 4",
        ),
    ],
)
def test_too_little_is_refused_before_the_decoding(split, tmp_path, keep, recipe, message):
    few = replace(split, train=tuple(crop for crop in split.train if keep(crop)))
    with pytest.raises(TrainingError, match=message):
        train(few, recipe, tmp_path / "run", callbacks=UNDECODED)
    assert nothing_in(tmp_path / "run")


def test_people_with_one_crop_are_learned_by_classification_alone(split, tmp_path):
    single = replace(split, train=tuple(crop for crop in split.train if crop.camid == 3))
    recipe = replace(SHORT, loss=Loss(triplet=TripletLoss(weight=0.0)))
    assert train(single, recipe, tmp_path / "run").crops == PEOPLE


def test_what_a_user_should_know_is_said(split, tmp_path):
    few = replace(split, train=tuple(crop for crop in split.train if crop.pid > 0 or crop.camid == 3))
    notes = []
    train(few, SHORT, tmp_path / "run", callbacks=Callbacks(on_note=notes.append))
    assert notes[0].startswith("1 of 6 identities have one crop: it is repeated 2 times")


@pytest.mark.parametrize("cached", [False, True])
def test_a_picture_that_cannot_be_decoded_is_named_and_nothing_is_left(split, tmp_path, cached):
    broken = tmp_path / "broken.png"
    broken.write_bytes(split.train[19].path.read_bytes()[:200])
    crops = (*split.train[:19], replace(split.train[19], path=broken), *split.train[20:])
    cache = tmp_path / "cache" if cached else None
    with pytest.raises(ImageError, match=r"broken\.png is truncated or damaged"):
        train(replace(split, train=crops), RECIPE, tmp_path / "run", cache=cache)
    assert nothing_in(tmp_path / "run")
    assert not cached or not list(cache.rglob("*.npy"))


def test_mining_that_fits_in_no_batch(split, tmp_path):
    recipe = replace(RECIPE, mining=Mining(round_epochs=1.0, negatives=3))
    with pytest.raises(ConfigError, match="A mined query and what belongs to it do not fit in a batch"):
        train(split, recipe, tmp_path / "run", callbacks=UNDECODED)


def test_crops_that_the_network_does_not_take(split, tmp_path):
    recipe = replace(RECIPE, model=ModelSpec(ResNetSpec(), HeadSpec(pooling="max", embedding_dim=8), "mgn"))
    with pytest.raises(InputError, match="too low for MGN"):
        train(split, recipe, tmp_path / "run", callbacks=UNDECODED)
    assert nothing_in(tmp_path / "run")


def test_reports_that_never_come(split, tmp_path):
    with pytest.raises(ConfigError, match=r"report_every is out of range\n  got: 0\n  expected: at least 1"):
        train(split, RECIPE, tmp_path / "run", report_every=0)


def test_a_device_that_is_not_there(split, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(RuntimeMissing, match=r"PyTorch sees no such CUDA device\n  got: cuda:1"):
        train(split, RECIPE, tmp_path / "run", device="cuda:1")
    with pytest.raises(RuntimeMissing, match=r"There are fewer GPUs than asked for\n  got: 1\n  expected: 2"):
        train(split, RECIPE, tmp_path / "run", device="cuda", devices=2)
    assert nothing_in(tmp_path / "run")


# -- a folder that holds something -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model", "last", "before"])
def test_an_earlier_checkpoint_is_refused_before_the_work(split, tmp_path, name):
    out = tmp_path / "run"
    out.mkdir()
    (out / f"{name}.safetensors").write_bytes(b"of an earlier run")
    (out / "log.csv").write_text("of an earlier run")
    text = rf"run.{name}\.safetensors already exists\n  to do: choose another name, or say --overwrite"
    with pytest.raises(OutputError, match=text):
        train(split, RECIPE, out, callbacks=UNDECODED)
    assert {file.read_bytes() for file in out.iterdir()} == {b"of an earlier run"}


def test_a_run_that_was_interrupted_is_not_begun_anew_by_accident(split, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with interrupted(2), pytest.raises(KeyboardInterrupt):
        train(split, RECIPE, out)
    text = r"holds a run that was interrupted\n  got: state\.pt\n  to do: go on with it by --resume"
    with pytest.raises(OutputError, match=text):
        train(split, RECIPE, out, callbacks=UNDECODED)
    # Overwritten, its state goes with its log: otherwise a later --resume would mix two runs.
    monkeypatch.setattr("reidkit.train.run.save_state", lambda path, state: None)
    with interrupted(1), pytest.raises(KeyboardInterrupt):
        train(split, replace(RECIPE, seed=1), out, overwrite=True)
    assert names_in(out) == ["log.csv"]


def test_with_overwrite_an_earlier_checkpoint_stays_until_the_new_one_is_whole(split, tmp_path):
    out, earlier = tmp_path / "run", b"of an earlier run"
    out.mkdir()
    (out / "model.safetensors").write_bytes(earlier)
    (out / "last.safetensors").write_bytes(earlier)

    def stop(report):
        raise SystemExit

    with pytest.raises(SystemExit):
        train(split, RECIPE, out, overwrite=True, callbacks=Callbacks(on_step=stop))
    assert (out / "model.safetensors").read_bytes() == earlier
    run = train(split, RECIPE, out, overwrite=True)
    assert len(tensors(run.checkpoint)) > 1
    assert names_in(out) == ["log.csv", "model.safetensors"]  # the other network of the earlier run is gone
    assert len(log_rows(out)) == 1


def test_a_place_that_cannot_be_written_to(split, tmp_path):
    (tmp_path / "run").write_text("a file")
    for place in ("run", "run/below"):
        with pytest.raises(
            OutputError, match=rf"Cannot write into .*{place}\n  got: .*run is no folder\n  to do: choose"
        ):
            train(split, RECIPE, tmp_path / place, callbacks=UNDECODED)
    assert (tmp_path / "run").read_text() == "a file"


def test_a_disk_without_room(split, tmp_path, monkeypatch):
    monkeypatch.setattr("reidkit.train.outcome.shutil.disk_usage", lambda folder: type("U", (), {"free": 1000}))
    with pytest.raises(OutputError, match=r"There is no room for the run in .*run\n  got: 0 MB free"):
        train(split, RECIPE, tmp_path / "run", callbacks=UNDECODED)
    assert nothing_in(tmp_path / "run")


# -- what cannot be resumed --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(people, tmp_path_factory):
    """A run that was interrupted after two steps, from the backbone of another one; do not change it."""
    folder = tmp_path_factory.mktemp("stopped")
    with narrow_networks():
        train(split_of(people, folder / "people"), SHORT, folder / "first")
        with interrupted(2), pytest.raises(KeyboardInterrupt):
            train(split_of(people, folder / "people"), RECIPE, folder / "run", init=folder / "first")
    return folder


def resume(folder, people, recipe=RECIPE, **options):
    return train(
        split_of(people, folder / "people"), recipe, folder / "run", resume=True, callbacks=UNDECODED, **options
    )


def test_another_recipe(stopped, people):
    recipe = replace(with_optim(RECIPE, lr=0.5), seed=3)
    text = (
        r"A run cannot be resumed with another recipe\n"
        r"  got: optim\.lr = 0\.5 \(the run: 0\.02\); seed = 3 \(the run: 0\)\n  expected: the recipe of the run"
    )
    with pytest.raises(TrainingError, match=text):
        resume(stopped, people, recipe)


def test_other_data(stopped, people):
    with pytest.raises(TrainingError, match=r"A run cannot be resumed with other training data"):
        resume(stopped, people[:-1])


@pytest.mark.parametrize(
    ("options", "different"),
    [
        ({}, "init"),
        ({"init": "first", "task": "vehicle"}, "task"),
        ({"init": "first", "teacher": "first"}, "teacher"),
    ],
)
def test_other_beginnings(stopped, people, options, different):
    named = {key: stopped / value if value == "first" else value for key, value in options.items()}
    with pytest.raises(TrainingError, match="A run cannot be resumed with other files than it began with") as caught:
        resume(stopped, people, **named)
    _, got, expected, _ = str(caught.value).splitlines()
    for line in (got, expected):
        assert line.count("--") == line.count(f"--{different} ") == 1
    assert ("--init none" in got) == (different == "init")


def test_a_run_that_has_ended(split, tmp_path):
    train(split, SHORT, tmp_path / "run")
    text = (
        r"run cannot be resumed: it has ended\n  got: model\.safetensors, and no state\.pt\n  expected: a run that was"
    )
    with pytest.raises(TrainingError, match=text):
        train(split, SHORT, tmp_path / "run", resume=True, callbacks=UNDECODED)
    assert len(log_rows(tmp_path / "run")) == 1


def test_no_run(split, tmp_path):
    with pytest.raises(TrainingError, match=r"No such state of a run: .*state\.pt"):
        train(split, SHORT, tmp_path / "run", resume=True, callbacks=UNDECODED)
    assert nothing_in(tmp_path / "run")


def test_a_log_that_is_gone(split, tmp_path):
    with interrupted(2), pytest.raises(KeyboardInterrupt):
        train(split, RECIPE, tmp_path / "run")
    (tmp_path / "run" / "log.csv").unlink()
    with pytest.raises(TrainingError, match=r"log\.csv is not there"):
        train(split, RECIPE, tmp_path / "run", resume=True)
    assert names_in(tmp_path / "run") == ["state.pt"]


# -- starting from somebody's weights ----------------------------------------------------------------------------------


def test_a_run_starts_from_the_backbone_of_a_checkpoint(split, tmp_path):
    first = train(split, SHORT, tmp_path / "first")
    still = replace(with_optim(SHORT, lr=1e-12, warmup_epochs=0.0, weight_decay=0.0), seed=9)
    second = train(split, still, tmp_path / "second", init=tmp_path / "first")
    fresh = train(split, still, tmp_path / "fresh")
    one, two, other = (tensors(run.checkpoint) for run in (first, second, fresh))
    name = "backbone.layer3.0.conv1.weight"
    torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-6)
    assert not torch.allclose(other[name], one[name], atol=1e-3)
    assert not torch.equal(two["heads.weight"], one["heads.weight"])  # other people, perhaps
    init = load_checkpoint(second.checkpoint)[1].provenance.init
    assert init is not None
    assert init.startswith("first, sha256 ")


def test_the_file_that_a_run_began_with_may_be_gone_when_it_ends(split, tmp_path):
    first = train(split, SHORT, tmp_path / "first").checkpoint
    callbacks = Callbacks(on_step=lambda report: first.unlink(missing_ok=True))
    run = train(split, SHORT, tmp_path / "second", init=first, callbacks=callbacks)
    assert load_checkpoint(run.checkpoint)[1].provenance.init.startswith("model.safetensors, sha256 ")


def test_a_backbone_that_is_another_is_refused_before_the_work(split, tmp_path):
    first = train(split, SHORT, tmp_path / "first")
    plain = replace(SHORT, model=ModelSpec(ResNetSpec(ibn="none")))
    with pytest.raises(ModelError, match=r"do not fit the backbone that is to be trained: bn1 holds IBN-a there"):
        train(split, plain, tmp_path / "second", init=first.checkpoint)
    mgn = replace(
        SHORT,
        input=InputSpec(96, 32),
        model=ModelSpec(ResNetSpec(), HeadSpec(pooling="max", embedding_dim=8), "mgn"),
    )
    with pytest.raises(ConfigError, match="MGN cannot start from a backbone, only from random weights"):
        train(split, mgn, tmp_path / "second", init=first.checkpoint, callbacks=UNDECODED)
    assert not (tmp_path / "second").exists()


# -- a teacher ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught(people, tmp_path_factory):
    """A teacher that learned the six people; do not change it."""
    folder = tmp_path_factory.mktemp("taught")
    with narrow_networks():
        recipe = with_optim(RECIPE, kind="adam", epochs=10.0, lr=1e-2, warmup_epochs=1.0)
        return train(split_of(people, folder / "people"), recipe, folder / "teacher").checkpoint


STUDENT = replace(
    with_optim(RECIPE, kind="adam", epochs=16.0, lr=1e-2),
    seed=5,
    batches=Batches(6, 2),
    augment=Augment(flip=0.0, pad=0, erase=0.0),
    loss=Loss(distillation=DistillationLoss(relation_weight=10.0)),
)


def test_a_student_copies_scores_and_relations(split, tmp_path, taught):
    reports, notes = [], []
    callbacks = Callbacks(on_step=reports.append, on_note=notes.append)
    run = train(split, STUDENT, tmp_path / "student", teacher=taught, report_every=8, callbacks=callbacks)
    assert notes[0].startswith("teacher: it was trained on the same identities, so its identity scores can be copied")
    assert list(reports[0].losses) == ["loss", "identity", "triplet", "scores", "relations"]
    assert reports[-1].losses["relations"] < 0.4 * reports[0].losses["relations"]
    assert reports[-1].losses["scores"] < reports[0].losses["scores"]
    teacher = load_checkpoint(run.checkpoint)[1].provenance.teacher
    assert teacher.startswith("model.safetensors, sha256 ")


def test_a_teacher_of_other_identities_gives_relations_only(split, tmp_path, taught):
    fewer = replace(split, train=tuple(crop for crop in split.train if crop.pid > 0))
    reports, notes = [], []
    callbacks = Callbacks(on_step=reports.append, on_note=notes.append)
    recipe = replace(with_optim(STUDENT, epochs=0.4), batches=Batches(5, 2))
    train(fewer, recipe, tmp_path / "student", teacher=taught, callbacks=callbacks)
    assert any("other identities" in note for note in notes)
    assert list(reports[0].losses) == ["loss", "identity", "triplet", "relations"]
    nothing = replace(recipe, loss=Loss(distillation=DistillationLoss(relation_weight=0.0)))
    with pytest.raises(ConfigError, match="There is a teacher, and nothing to copy from it"):
        train(fewer, nothing, tmp_path / "other", teacher=taught)


def test_a_teacher_of_another_kind_and_size(split, tmp_path, taught):
    """Its crops are larger, and its embeddings wider."""
    recipe = replace(
        SHORT, input=InputSpec(48, 24), model=ModelSpec(OSNetSpec(width=0.25), HeadSpec(pooling="average"))
    )
    large = train(split, recipe, tmp_path / "large")
    reports = []
    student = with_optim(STUDENT, epochs=0.4)
    train(split, student, tmp_path / "run", teacher=large.checkpoint, callbacks=Callbacks(on_step=reports.append))
    assert all(math.isfinite(loss) for loss in reports[-1].losses.values())
    assert {"scores", "relations"} < reports[-1].losses.keys()


def test_no_teacher_there(split, tmp_path):
    with pytest.raises(ModelError, match=r"No teacher at .*nobody"):
        train(split, STUDENT, tmp_path / "run", teacher=tmp_path / "nobody", callbacks=UNDECODED)


def test_without_a_teacher_distillation_does_not_count(split, tmp_path):
    reports = []
    train(split, with_optim(STUDENT, epochs=0.2), tmp_path / "run", callbacks=Callbacks(on_step=reports.append))
    assert list(reports[0].losses) == ["loss", "identity", "triplet"]
