"""A training log, read and drawn."""

import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from reidkit.errors import DataError
from reidkit.report import training_curves
from reidkit.report.plotting import COLORS, INK
from reidkit.report.training_curves import read_log, write_training_curves
from reidkit.train.journal import Journal, Measured, StepReport

HEADER = "stage,step,epoch,loss,identity,triplet,lr,images_per_second,mean_ap,rank1\n"
ROWS = (
    "1,10,1.0,6.0,6.0,,0.001,500.0,,\n",
    "1,20,2.0,5.0,5.0,,0.002,500.0,,\n",
    "1,20,2.0,,,,,,0.25,0.5\n",
    "2,10,0.5,4.5,4.0,0.5,0.003,500.0,,\n",
    "2,20,1.0,3.5,3.25,0.25,0.004,500.0,,\n",
    "2,20,1.0,,,,,,0.5,0.75\n",
    "2,30,1.5,,,,,,0.375,0.8\n",
)


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(HEADER + "".join(ROWS))
    return path


def curves(axes, color):
    """The points of the lines of one colour."""
    lines = [line for line in axes.get_lines() if to_hex(line.get_color()) == color.lower()]
    return [[(float(x), float(y)) for x, y in zip(*line.get_data(), strict=True)] for line in lines]


def test_what_a_log_says(log):
    found = read_log(str(log))
    nan = np.nan
    np.testing.assert_array_equal(found.stage, [1, 1, 1, 2, 2, 2, 2])
    np.testing.assert_array_equal(found.epoch, [1.0, 2.0, 2.0, 2.5, 3.0, 3.0, 3.5])
    assert found.boundaries == (2.0,)
    assert list(found.losses) == ["loss", "identity", "triplet"]
    np.testing.assert_array_equal(found.losses["triplet"], [nan, nan, nan, 0.5, 0.25, nan, nan])
    np.testing.assert_array_equal(found.lr, [0.001, 0.002, nan, 0.003, 0.004, nan, nan])
    np.testing.assert_array_equal(found.mean_ap, [nan, nan, 0.25, nan, nan, 0.5, 0.375])
    np.testing.assert_array_equal(found.rank1, [nan, nan, 0.5, nan, nan, 0.75, 0.8])


def test_what_the_journal_writes_can_be_read(tmp_path):
    with Journal(tmp_path, ["identity"]) as journal:
        journal.write(StepReport(1, 10, 100, 0.1, 3e-4, 812.5, {"loss": 2.5, "identity": 2.5}))
        journal.measured(Measured(1, 10, 0.1, 0.4, 0.6, best=True))
    found = read_log(tmp_path / "log.csv")
    np.testing.assert_array_equal(found.losses["identity"], [2.5, np.nan])
    np.testing.assert_array_equal(found.mean_ap, [np.nan, 0.4])
    np.testing.assert_array_equal(found.lr, [3e-4, np.nan])


def test_each_panel_shows_its_numbers(log):
    losses, scores, rate = training_curves._draw(read_log(log), "").axes
    assert curves(losses, INK) == [[(1.0, 6.0), (2.0, 5.0)], [(2.5, 4.5), (3.0, 3.5)]]  # one line a stage
    assert curves(losses, COLORS[0]) == [[(1.0, 6.0), (2.0, 5.0)], [(2.5, 4.0), (3.0, 3.25)]]
    assert curves(losses, COLORS[1]) == [[(2.5, 0.5), (3.0, 0.25)]]
    assert [text.get_text() for text in losses.get_legend().get_texts()] == ["sum", "identity", "triplet"]
    # The whole line, and the validation with the best mAP, which is not the one with the best rank-1.
    assert curves(scores, COLORS[0]) == [[(2.0, 25.0), (3.0, 50.0), (3.5, 37.5)], [(3.0, 50.0)]]
    assert curves(scores, COLORS[1]) == [[(2.0, 50.0), (3.0, 75.0), (3.5, 80.0)], [(3.0, 75.0)]]
    assert [text.get_text() for text in scores.get_legend().get_texts()] == ["mAP 50.0 %", "rank-1 75.0 %"]
    assert scores.get_legend().get_title().get_text() == "best mAP, at epoch 3"
    assert curves(rate, COLORS[2]) == [[(1.0, 0.001), (2.0, 0.002)], [(2.5, 0.003), (3.0, 0.004)]]
    assert losses.get_xlim() == rate.get_xlim() == (0.0, 3.5)
    assert [text.get_text() for text in losses.texts] == ["stage 2"]


def test_a_run_that_was_not_measured_has_no_panel_for_it(log):
    log.write_text(HEADER + ROWS[0])
    losses, _ = training_curves._draw(read_log(log), "").axes
    assert curves(losses, INK) == [[(1.0, 6.0)]]
    assert losses.get_lines()[0].get_marker() == "o"  # a single point can be seen
    assert not losses.texts


def test_losses_that_fall_far_are_drawn_on_a_logarithmic_axis(log):
    assert training_curves._draw(read_log(log), "").axes[0].get_yscale() == "linear"
    log.write_text(HEADER + ROWS[0] + ROWS[0].replace("1,10,1.0,6.0,6.0", "1,20,2.0,0.01,0.01"))
    assert training_curves._draw(read_log(log), "").axes[0].get_yscale() == "log"
    log.write_text(HEADER + ROWS[0] + ROWS[0].replace("1,10,1.0,6.0,6.0", "1,20,2.0,0.0,0.0"))
    assert training_curves._draw(read_log(log), "").axes[0].get_yscale() == "linear"


def test_a_long_run_is_smoothed():
    values = np.random.default_rng(0).normal(size=9)
    by_hand = [np.mean(values[max(0, i - 2) : i + 3]) for i in range(9)]
    np.testing.assert_allclose(training_curves._smoothed(values, 2), by_hand)


def test_a_long_run_shows_what_was_logged_too(log):
    log.write_text(HEADER + "".join(f"1,{i},{i / 10},{5 + i % 2},{5 + i % 2},,0.001,500.0,,\n" for i in range(1, 101)))
    raw, smooth = curves(training_curves._draw(read_log(log), "").axes[0], INK)
    assert raw == [(i / 10, 5.0 + i % 2) for i in range(1, 101)]
    assert smooth[50][1] == pytest.approx(5.6)  # three of five are 6


def test_the_picture_has_the_colours_and_the_same_log_gives_the_same_bytes(log, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    write_training_curves(log, tmp_path / "x.png", title="a $5 run_with_names")
    write_training_curves(str(log), str(tmp_path / "y.png"), title="a $5 run_with_names")
    assert (tmp_path / "x.png").read_bytes() == (tmp_path / "y.png").read_bytes()
    with Image.open(tmp_path / "x.png") as image:
        assert image.format == "PNG"
        found = {color for _, color in image.convert("RGB").getcolors(maxcolors=1 << 24)}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)} <= found


def test_a_run_that_goes_on_can_be_drawn(log):
    log.write_text(HEADER + ROWS[0] + "1,20,2.0,5")
    assert len(read_log(log).epoch) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r" is not there\n  expected: the log\.csv of a training run$"),
        ("", r" is no training log\n  got: an empty file\n  expected: the columns stage,step,epoch,loss, the parts"),
        ("step,steps,epoch,loss\n1,2,3,4\n", r" is no training log\n  got: the columns step,steps,epoch,loss\n"),
        (HEADER.replace("triplet", "identity"), r" is no training log\n  got: the columns stage"),
        (HEADER, r" has no rows yet\n  expected: at least one report\n  to do: wait"),
        (HEADER + ROWS[0] + "1,20,x,,,,,,,\n", r" is damaged in line 3\n  got: 1,20,x,,,,,,,\n  expected: 10 cells, "),
        (HEADER + ROWS[0] + "1,20,,,,,,,,\n", r" is damaged in line 3\n  got: 1,20,,,,,,,,\n"),
        (HEADER + "1,20,1.0\n", r" is damaged in line 2\n  got: 1,20,1.0\n  .*\n  to do: mend the line or take it out"),
        (
            HEADER + "1.5,20,1.0,,,,,,,\n",
            r" is damaged in line 2\n  got: 1\.5,20,1\.0,.*\n  expected: 10 .* from 1, epoch",
        ),
        (HEADER + "1e30,20,1.0,,,,,,,\n", r" is damaged in line 2\n"),  # no number of a stage, and no int64
        (HEADER + f"{10**30},20,1.0,,,,,,,\n", r" is damaged in line 2\n"),
        (HEADER + "0,20,1.0,,,,,,,\n", r" is damaged in line 2\n"),
        (HEADER + "\n" + ROWS[0], r" is damaged in line 2\n  got: an empty line"),
        (HEADER.encode("utf-16"), r" (is no training log|cannot be read)\n"),
        (b"\xff\n", r" cannot be read\n  got: .*utf-8.*\n  expected: the log\.csv of a training run$"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path, content, said):
    log = tmp_path / "log.csv"
    if content is not None:
        log.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=r"log\.csv" + said):
        write_training_curves(log, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
