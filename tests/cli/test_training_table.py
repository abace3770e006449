"""What `reid train` shows while it runs: places and remaining time by hand, in a terminal and in a log file."""

import io

import pytest
from rich.console import Console

from reidkit.cli import console, training_table
from reidkit.cli.training_table import TrainingTable
from reidkit.train.journal import Measured, StepReport
from reidkit.train.recipe import load_recipe


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the test sets."""
    now = [1000.0]
    monkeypatch.setattr(training_table.time, "monotonic", lambda: now[0])
    return now


def open_console(monkeypatch, *, terminal):
    written = io.StringIO()
    monkeypatch.setattr(
        console, "err", Console(file=written, width=100, force_terminal=terminal, color_system=None, emoji=False)
    )
    return written


def report(stage, step, epoch):
    losses = {"loss": 2.34567, "identity": 2.1, "triplet": 0.24567}
    return StepReport(stage, step, 3600, epoch, 1.5e-3, 1234.5, losses)


TWO_STAGES = load_recipe("demo", overrides=["before.optim.epochs=4", "optim.epochs=12"])


def test_a_log_file_gets_a_line_an_epoch_and_one_for_each_measurement(monkeypatch, clock):
    written = open_console(monkeypatch, terminal=False)
    with TrainingTable(TWO_STAGES) as table:
        table.on_decode(5, 10)
        for seconds, *at in ((0, 1, 10, 0.5), (10, 1, 20, 0.9), (20, 1, 30, 1.0), (50, 2, 10, 0.5), (60, 2, 20, 0.6)):
            clock[0] = 1000 + seconds
            table.on_step(report(*at))
        table.on_measured(Measured(2, 20, 0.6, mean_ap=0.4, rank1=0.6, best=True))
        table.on_measured(Measured(2, 30, 0.9, mean_ap=0.3, rank1=0.7, best=False))
    losses = "loss 2.346  identity 2.100  triplet 0.246  lr 1.5e-03  1,234 images/s"
    assert written.getvalue().splitlines() == [
        f"stage 1/2  epoch 0.5/4  step 10/3600  {losses}  - left",
        f"stage 1/2  epoch 1.0/4  step 30/3600  {losses}  0:10:00 left",  # 0.5 epochs in 20 s, 15 of 16 to go
        f"stage 2/2  epoch 0.5/12  step 10/3600  {losses}  0:02:24 left",  # 4 epochs in 50 s, 11.5 to go
        "stage 2/2  epoch 0.6/12  mAP 40.0 %  rank-1 60.0 %  (the best so far)",
        "stage 2/2  epoch 0.9/12  mAP 30.0 %  rank-1 70.0 %  "
        "(best mAP 40.0 %  rank-1 60.0 % at stage 2/2  epoch 0.6/12)",
    ]


def test_the_end_of_a_run_is_no_time_away(monkeypatch, clock):
    written = open_console(monkeypatch, terminal=False)
    with TrainingTable(load_recipe("demo", overrides=["optim.epochs=3"])) as table:
        table.on_step(report(1, 3600, 3.0))
    assert written.getvalue().endswith(" 0:00:00 left\n")
    assert written.getvalue().startswith("epoch 3.0/3  step 3600/3600")


def test_a_resumed_run_may_not_know_its_best(monkeypatch):
    written = open_console(monkeypatch, terminal=False)
    with TrainingTable(load_recipe("demo", overrides=["optim.epochs=12"])) as table:
        table.on_measured(Measured(1, 30, 5.0, mean_ap=0.3, rank1=0.7, best=False))
    assert written.getvalue() == "epoch 5.0/12  mAP 30.0 %  rank-1 70.0 %  (best before the run was resumed)\n"


def last_frame(written):
    return written.getvalue().split("\x1b[2K")[-1].replace("\x1b[?25h", "").splitlines()


def test_a_terminal_shows_a_table(monkeypatch, clock):
    written = open_console(monkeypatch, terminal=True)
    with TrainingTable(TWO_STAGES) as table:
        table.on_step(report(1, 1800, 2.0))
        clock[0] += 60
        table.on_step(report(2, 1200, 4.0))
        table.on_measured(Measured(2, 10, 0.5, mean_ap=0.4, rank1=0.6, best=True))
        table.on_measured(Measured(2, 20, 0.6, mean_ap=0.3, rank1=0.7, best=False))
        console.note("a note")
    assert "a note\n" in written.getvalue()
    bar, *rows = last_frame(written)
    assert bar.startswith("━━━━")
    assert bar.split()[1:] == ["50%", "0:01:20", "left"]  # 6 epochs in 60 s, 8 of 16 to go
    assert [row.split() for row in rows] == [
        ["stage", "2", "of", "2", "loss", "2.3457"],
        ["epoch", "4.0", "of", "12", "identity", "2.1000"],
        ["step", "1,200", "of", "3,600", "triplet", "0.2457"],
        ["learning", "rate", "1.50e-03"],
        ["images/s", "1,234"],
        ["measured", "mAP", "30.0", "%", "rank-1", "70.0", "%"],
        ["best", "mAP", "40.0", "%", "rank-1", "60.0", "%", "at", "stage", "2/2", "epoch", "0.5/12"],
    ]


@pytest.mark.parametrize(
    ("decoded", "words"),
    [(None, "getting ready"), ((30, 120), "30 of 120 crops"), ((9, 9), "waiting for the first steps")],
)
def test_a_terminal_shows_what_comes_before_the_first_step(monkeypatch, decoded, words):
    written = open_console(monkeypatch, terminal=True)
    with TrainingTable(TWO_STAGES) as table:
        if decoded is not None:
            table.on_decode(*decoded)
    (line,) = last_frame(written)
    assert words in line
    assert ("25%" in line) == (decoded == (30, 120))
