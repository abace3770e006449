"""A run while it goes on: interrupted anywhere it ends as if nothing had happened, and every way in which it stops."""

import errno
import math
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from tiny_runs import RECIPE, interrupted, log_rows, tensors, train_in_pieces, with_optim

import reidkit.models.checkpoint as checkpoint_module
from reidkit.errors import OutputError, TrainingError
from reidkit.train import loop
from reidkit.train.callbacks import Callbacks
from reidkit.train.loop import train
from reidkit.train.losses.criterion import Criterion
from reidkit.train.recipe import Stage
from reidkit.train.schedule import learning_rate
from reidkit.train.settings import (
    Augment,
    CenterLoss,
    DistillationLoss,
    Loss,
    Mining,
    Optim,
    TripletLoss,
    Validation,
)
from reidkit.train.state import load_state, save_state
from reidkit.train.step import Step
from reidkit.train.validation import Examination

pytestmark = pytest.mark.usefixtures("narrow_networks")

ALL = Augment(pad=2, affine=0.5, background=0.3, policy=0.3, color=0.5, patch=0.3, erase=0.5)
TWO_STAGES = replace(
    with_optim(RECIPE, kind="adam", lr=1e-3, epochs=1.2, ema=0.9),
    before=Stage(
        RECIPE.batches,
        augment=ALL,
        loss=Loss(triplet=TripletLoss(weight=0.0)),
        optim=Optim(kind="sgd", epochs=1.5, lr=0.02, warmup_epochs=0.5, accumulate=2, freeze_epochs=0.6),
    ),
    mining=Mining(round_epochs=0.5),
    loss=Loss(center=CenterLoss(weight=0.01)),
    validation=Validation(every=0.5, identities=0.34),
)
"""Three steps of classification, the backbone frozen at first; then five with a round of mining every two."""

RECIPES = {
    "two stages, mined, measured, averaged": TWO_STAGES,
    "accumulated, clipped, frozen at first": with_optim(
        RECIPE, kind="adamw", epochs=1.4, accumulate=2, clip=1.0, freeze_epochs=0.7
    ),
    "half precision": replace(RECIPE, amp="float16", augment=ALL),
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Counting what a network costs takes longer than these runs, and is tested elsewhere."""
    monkeypatch.setattr(loop, "model_cost", lambda spec, size: None)


def files_in(folder):
    return sorted(file.name for file in folder.iterdir())


def same_files(one, other):
    names = [name for name in files_in(one) if name.endswith(".safetensors")]
    assert names == [name for name in files_in(other) if name.endswith(".safetensors")]
    for name in names:
        first, second = tensors(one / name), tensors(other / name)
        assert first.keys() == second.keys()
        assert [key for key in first if not torch.equal(first[key], second[key])] == [], name
    return names


# -- interrupted and resumed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_interrupted_after_every_step_ends_as_if_nothing_had_happened(split, tmp_path, name):
    recipe = RECIPES[name]
    whole = train(split, recipe, tmp_path / "whole", report_every=2)
    run, pieces = train_in_pieces(split, recipe, tmp_path / "pieces", report_every=2)
    assert pieces == whole.steps + 1  # and once more to write down what is done
    assert run.steps == 0
    assert log_rows(tmp_path / "pieces") == log_rows(tmp_path / "whole")
    files = same_files(tmp_path / "whole", tmp_path / "pieces")
    expected = {"model.safetensors"} | ({"before.safetensors", "last.safetensors"} if recipe.before else set())
    assert set(files) == expected
    assert files_in(tmp_path / "whole") == sorted(expected | {"log.csv"})


def test_a_state_that_was_saved_on_the_way_is_as_good(split, tmp_path, monkeypatch):
    """A run that is killed goes on from the last state, and does again what came after it."""
    recipe = replace(with_optim(RECIPE, epochs=1.0, ema=0.5), validation=Validation(every=0.3, on="test"))
    split = replace(split, query=split.train[::6], gallery=split.train)
    whole = train(split, recipe, tmp_path / "whole", report_every=1)
    assert whole.steps == 6

    def killed(report):
        if report.step == 5:
            raise SystemExit

    killed_run = tmp_path / "killed"
    with pytest.raises(SystemExit):
        train(split, recipe, killed_run, report_every=1, save_every=0.0, callbacks=Callbacks(on_step=killed))
    assert load_state(killed_run / "state.pt").step == 4
    assert log_rows(killed_run)[-1]["step"] == "5"
    run = train(split, recipe, killed_run, report_every=1, resume=True)
    assert run.steps == 2
    assert log_rows(killed_run) == log_rows(tmp_path / "whole")
    same_files(tmp_path / "whole", killed_run)


def test_states_are_saved_in_their_time_and_not_at_the_end(split, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr("reidkit.train.run.save_state", lambda path, state: saved.append(state.step))
    train(split, RECIPE, tmp_path / "often", report_every=1, save_every=0.0)
    assert saved == [1, 2, 3]
    train(split, RECIPE, tmp_path / "seldom", report_every=1)
    assert saved == [1, 2, 3]


def test_an_interrupt_ends_the_step_and_says_what_to_do(split, tmp_path):
    notes, out = [], tmp_path / "run"
    handler = signal.getsignal(signal.SIGINT)
    with interrupted(3), pytest.raises(KeyboardInterrupt):
        train(split, RECIPE, out, report_every=100, callbacks=Callbacks(on_note=notes.append))
    assert notes[-1] == f"stopped after step 3 of 4; everything needed to go on is in {out / 'state.pt'}"
    assert files_in(out) == ["log.csv", "state.pt"]
    assert log_rows(out) == []  # no report was due
    state = load_state(out / "state.pt")
    assert state.step == 3
    assert state.losses.shape == (3, 3)
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_interrupt_stops_at_once(split, tmp_path, monkeypatch):
    learn = Step.__call__

    def interrupting(self, crops, labels):
        learn(self, crops, labels)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Step, "__call__", interrupting)
    with pytest.raises(KeyboardInterrupt):
        train(split, RECIPE, tmp_path / "run")
    assert files_in(tmp_path / "run") == ["log.csv"]


def test_an_interrupt_that_cannot_be_saved_says_so(split, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with interrupted(1), pytest.raises(OutputError, match=r"Cannot write .*state\.pt\n  got: No space left on device"):
        train(split, RECIPE, tmp_path / "run")
    assert files_in(tmp_path / "run") == ["log.csv"]


# -- what is reported --------------------------------------------------------------------------------------------------


def test_reports_are_the_means_of_all_steps_since_the_last_one(split, tmp_path):
    """Also where the backbone wakes up between two reports: three steps frozen, three not."""
    recipe = with_optim(RECIPE, epochs=1.0, freeze_epochs=0.45)
    one_by_one, by_four = [], []
    train(split, recipe, tmp_path / "one", report_every=1, callbacks=Callbacks(on_step=one_by_one.append))
    train(split, recipe, tmp_path / "four", report_every=4, callbacks=Callbacks(on_step=by_four.append))
    assert [report.step for report in one_by_one] == [1, 2, 3, 4, 5, 6]
    assert [report.step for report in by_four] == [4, 6]
    losses = [report.losses["loss"] for report in one_by_one]
    assert by_four[0].losses["loss"] == pytest.approx(sum(losses[:4]) / 4, rel=1e-5)
    assert by_four[1].losses["loss"] == pytest.approx(sum(losses[4:]) / 2, rel=1e-5)
    for done, report in enumerate(one_by_one):
        assert report.losses["loss"] == pytest.approx(report.losses["identity"] + report.losses["triplet"], rel=1e-5)
        assert report.lr == learning_rate(done / 6, recipe.optim)
        assert report.epoch == pytest.approx((done + 1) / 6)
        assert (report.stage, report.steps) == (1, 6)
        assert report.images_per_second > 0
    rows = log_rows(tmp_path / "one", without=())
    assert [float(row["loss"]) for row in rows] == losses
    assert [float(row["images_per_second"]) for row in rows] == [r.images_per_second for r in one_by_one]


# -- losses and weights that are no numbers ----------------------------------------------------------------------------


def broken_from(patch, step):
    """The loss is no number from this step on."""
    forward, calls = Criterion.forward, []

    def breaking(self, outputs, labels, teacher=None):
        calls.append(1)
        losses = forward(self, outputs, labels, teacher)
        return losses if len(calls) < step else losses * math.nan

    patch.setattr(Criterion, "forward", breaking)


def test_a_loss_that_is_no_number_stops_the_run_and_what_was_good_stays(split, tmp_path):
    recipe, out = with_optim(RECIPE, epochs=1.4), tmp_path / "run"  # 8 steps
    with pytest.MonkeyPatch.context() as patch:
        broken_from(patch, 5)
        text = (
            r"The loss stopped being a number at step 5\n  got: identity nan, triplet nan\n.*finite losses\n.*optim\.lr"
        )
        with pytest.raises(TrainingError, match=text):
            train(split, recipe, out, report_every=2, save_every=0.0)
    assert [row["step"] for row in log_rows(out)] == ["2", "4"]
    assert files_in(out) == ["log.csv", "state.pt"]
    assert load_state(out / "state.pt").step == 4
    # The last state is good: from there the run ends as if the loss had always been a number.
    train(split, recipe, out, report_every=2, resume=True)
    train(split, recipe, tmp_path / "whole", report_every=2)
    same_files(out, tmp_path / "whole")


def test_an_interrupt_saves_no_broken_state(split, tmp_path, monkeypatch):
    broken_from(monkeypatch, 2)
    with interrupted(3), pytest.raises(TrainingError, match="stopped being a number at step 2"):
        train(split, RECIPE, tmp_path / "run", report_every=100)
    assert files_in(tmp_path / "run") == ["log.csv"]


def test_a_loss_that_broke_before_the_backbone_woke_up_is_seen(split, tmp_path, monkeypatch):
    broken_from(monkeypatch, 2)
    with pytest.raises(TrainingError, match="stopped being a number at step 2"):
        train(split, with_optim(RECIPE, freeze_epochs=0.4), tmp_path / "run", report_every=100)


def test_too_high_a_learning_rate_ends_so(split, tmp_path):
    recipe = with_optim(RECIPE, lr=1e30, warmup_epochs=0.0)
    with pytest.raises(TrainingError, match=r"The loss stopped being a number at step [23]"):
        train(split, recipe, tmp_path / "run", report_every=2)
    assert files_in(tmp_path / "run") == ["log.csv"]


def test_weights_that_the_last_step_broke_are_not_written(split, tmp_path, monkeypatch):
    learn = Step.__call__

    def breaking(self, crops, labels):
        learn(self, crops, labels)
        self._learner.model.heads.weight.data[0, 0] = torch.nan

    monkeypatch.setattr(Step, "__call__", breaking)
    with pytest.raises(TrainingError, match=r"1 weights are not finite\n  got: heads\.weight"):
        train(split, with_optim(RECIPE, epochs=0.1), tmp_path / "run")
    assert files_in(tmp_path / "run") == ["log.csv"]


# -- a full disk -------------------------------------------------------------------------------------------------------


def full_disk(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_state_that_finds_no_room_does_not_stop_the_run(split, tmp_path, monkeypatch):
    notes = []
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    callbacks = Callbacks(on_note=notes.append)
    run = train(split, RECIPE, tmp_path / "run", report_every=2, save_every=0.0, callbacks=callbacks)
    said = [note for note in notes if "could not be saved" in note]
    path = tmp_path / "run" / "state.pt"
    assert said == [f"the state could not be saved (Cannot write {path}); the run goes on without"]
    assert len(tensors(run.checkpoint)) > 50
    assert files_in(tmp_path / "run") == ["log.csv", "model.safetensors"]


def test_a_checkpoint_that_finds_no_room_can_still_be_had_from_the_state(split, tmp_path):
    def full(*arguments):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_module, "save_file", full)
        with pytest.raises(OutputError, match=r"Cannot write .*model\.safetensors\n  got: .*No space left on device"):
            train(split, RECIPE, out, report_every=1, save_every=0.0)
    assert files_in(out) == ["log.csv", "state.pt"]
    run = train(split, RECIPE, out, report_every=1, resume=True)
    assert run.steps == 1
    train(split, RECIPE, tmp_path / "whole")
    same_files(out, tmp_path / "whole")


# -- measuring ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def figures(monkeypatch):
    """What validation finds, one figure after the other; and with which weights."""
    wanted, measured = [], []

    def rank(self, embeddings):
        measured.append(embeddings)
        figure = wanted[len(measured) - 1]
        return SimpleNamespace(mean_ap=figure, cmc=lambda k: figure / 2)

    monkeypatch.setattr(Examination, "rank", rank)
    return wanted, measured


MEASURED = replace(with_optim(RECIPE, epochs=1.0), validation=Validation(every=0.4, identities=0.34))
"""Four steps of 6 out of 24 crops, measured after the second and the fourth."""


def test_the_best_network_is_kept_and_so_is_the_last(split, tmp_path, figures):
    figures[0].extend([0.3, 0.7, 0.7, 0.5])
    recipe = replace(MEASURED, validation=replace(MEASURED.validation, every=0.25))
    found, best = [], {}

    def on_measured(measured):
        found.append(measured)
        best[measured.step] = (tmp_path / "run" / "model.safetensors").read_bytes()

    run = train(split, recipe, tmp_path / "run", report_every=3, callbacks=Callbacks(on_measured=on_measured))
    assert [(m.step, m.mean_ap, m.rank1, m.best) for m in found] == [
        (1, 0.3, 0.15, True),
        (2, 0.7, 0.35, True),
        (3, 0.7, 0.35, False),
        (4, 0.5, 0.25, False),
    ]
    assert run.best == found[1]
    assert files_in(tmp_path / "run") == ["last.safetensors", "log.csv", "model.safetensors"]
    assert run.checkpoint.read_bytes() == best[2] == best[4] != best[1]
    # The best is the network after two steps of the same course.
    figures[0].extend([0.3, 0.7])
    with interrupted(2), pytest.raises(KeyboardInterrupt):
        train(split, recipe, tmp_path / "two", report_every=3)
    state, kept = load_state(tmp_path / "two" / "state.pt").model, tensors(run.checkpoint)
    assert all(torch.equal(kept[name], state[name]) for name in kept)
    rows = log_rows(tmp_path / "run")
    assert [(row["step"], row["mean_ap"]) for row in rows if row["mean_ap"]] == [
        ("1", "0.3"),
        ("2", "0.7"),
        ("3", "0.7"),
        ("4", "0.5"),
    ]


def test_what_is_measured_and_kept_is_the_average(split, tmp_path, figures):
    figures[0].extend([0.5, 0.6])
    run = train(split, replace(MEASURED, optim=replace(MEASURED.optim, ema=0.9)), tmp_path / "average")
    average = tensors(run.checkpoint)
    measured = figures[1][1]
    figures[0].extend([0.5, 0.6])
    plain = tensors(train(split, MEASURED, tmp_path / "plain").checkpoint)
    assert not torch.equal(average["heads.weight"], plain["heads.weight"])
    assert (measured != figures[1][3]).any()


def test_patience_ends_a_run_early(split, tmp_path, figures):
    figures[0].extend([0.6, 0.5, 0.6, 0.9])
    recipe = replace(MEASURED, validation=replace(MEASURED.validation, every=0.25, patience=2))
    notes = []
    run = train(split, recipe, tmp_path / "run", callbacks=Callbacks(on_note=notes.append))
    assert run.steps == 3
    assert run.best.step == 1
    assert notes[-1] == "ended at step 3: 2 measurements without a new best mAP"
    assert files_in(tmp_path / "run") == ["last.safetensors", "log.csv", "model.safetensors"]


def test_patience_remembers_what_was_before_an_interrupt(split, tmp_path, figures):
    figures[0].extend([0.6, 0.5, 0.6, 0.9])
    recipe = replace(MEASURED, validation=replace(MEASURED.validation, every=0.25, patience=2))
    run, pieces = train_in_pieces(split, recipe, tmp_path / "run")
    assert pieces == 3  # the third step ends the run before it is asked to stop
    assert run.steps == 1
    assert run.best is None  # the best was before
    assert [row["step"] for row in log_rows(tmp_path / "run") if row["mean_ap"]] == ["1", "2", "3"]


def test_a_first_stage_that_ends_early_hands_over_to_the_second(split, tmp_path, figures):
    figures[0].extend([0.6, 0.5, 0.1, 0.2, 0.3, 0.4])
    recipe = replace(
        MEASURED,
        validation=replace(MEASURED.validation, every=0.25, patience=1),
        before=Stage(RECIPE.batches, augment=RECIPE.augment, optim=MEASURED.optim),
    )
    run = train(split, recipe, tmp_path / "run")
    assert run.steps == 2 + 4
    assert (run.best.stage, run.best.step) == (2, 4)  # lower than the first stage's, which is no candidate
    assert files_in(tmp_path / "run") == ["before.safetensors", "last.safetensors", "log.csv", "model.safetensors"]


def test_embeddings_that_are_no_numbers_are_not_measured(split, tmp_path, monkeypatch):
    learn = Step.__call__

    def breaking(self, crops, labels):
        learn(self, crops, labels)
        self._learner.model.backbone.bn1.running_var[0] = torch.inf

    monkeypatch.setattr(Step, "__call__", breaking)
    with pytest.raises(TrainingError, match=r"1 weights are not finite\n  got: backbone\.bn1\.running_var"):
        train(split, MEASURED, tmp_path / "run")


# -- distillation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["kl", "js"])
def test_a_student_that_is_interrupted_goes_on_with_its_teacher(split, tmp_path, kind):
    teacher = train(split, with_optim(RECIPE, epochs=0.2), tmp_path / "teacher").checkpoint
    recipe = replace(RECIPE, seed=1, loss=Loss(distillation=DistillationLoss(kind=kind)))
    train(split, recipe, tmp_path / "whole", teacher=teacher, report_every=2)
    if kind == "kl":
        train_in_pieces(split, recipe, tmp_path / "pieces", teacher=teacher, report_every=2)
        assert log_rows(tmp_path / "pieces") == log_rows(tmp_path / "whole")
        same_files(tmp_path / "whole", tmp_path / "pieces")
    rows = log_rows(tmp_path / "whole")
    for row in rows:
        parts = [float(row[name]) for name in ("identity", "triplet", "scores", "relations")]
        assert all(part > 0 for part in parts)
        assert float(row["loss"]) == pytest.approx(sum(parts), rel=1e-5)


# -- states that do not fit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {"step": 10_000}, r"got: step 10000: the stage has \d+"),
        (lambda state: {"stage": 7}, r"got: stage 8: the recipe has 2"),
        (lambda state: {"mined": [], "mining_round": 0}, r"got: batches that were mined: 6 indices each"),
        (lambda state: {"mined": [np.array([0, 1, 2, 3, 4, 99])], "mining_round": 0}, r"6 indices each, of \d+ crops"),
        (lambda state: {"mined": [np.arange(6)], "mining_round": None}, r"got: batches that were mined: their round"),
        (lambda state: {"losses": torch.zeros(1, 9)}, r"got: 9 losses a step: the recipe has \d"),
        (lambda state: {"ema": None}, "tensors of another network"),
        (lambda state: {"model": {**state.model, "backbone.conv1.weight": torch.zeros(1)}}, "tensors of another"),
    ],
)
def test_a_state_that_was_changed_is_refused_and_nothing_hangs(split, tmp_path, change, message):
    out = tmp_path / "run"
    with interrupted(4), pytest.raises(KeyboardInterrupt):
        train(split, TWO_STAGES, out)
    state = load_state(out / "state.pt")
    assert state.stage == 1
    save_state(out / "state.pt", replace(state, **change(state)))
    with pytest.raises(TrainingError, match=rf"(?s)The saved state does not fit this run\n.*{message}.*to do: resume"):
        train(split, TWO_STAGES, out, resume=True)
    assert not (out / "model.safetensors").exists()
