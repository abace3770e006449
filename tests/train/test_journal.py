"""The log row by row, TensorBoard's events, and a run that goes on."""

import csv
import sys

import pytest

from reidkit.errors import OutputError, RuntimeMissing, TrainingError
from reidkit.train.journal import Journal, Measured, StepReport

PARTS = ("identity", "triplet")
HEADER = "stage,step,epoch,loss,identity,triplet,lr,images_per_second,mean_ap,rank1\n"
AFRESH = "begin the run again with --overwrite"


def report(stage, step, **parts):
    return StepReport(stage, step, 100, step / 10, 1e-3, 500.0, {"loss": sum(parts.values()), **parts})


def fill(out, **options):
    with Journal(out, PARTS, **options) as journal:
        journal.write(report(1, 10, identity=6.5))
        journal.write(report(1, 20, identity=5.5))
        journal.measured(Measured(1, 20, 2.0, 0.25, 0.5, best=True))
        journal.write(report(2, 10, identity=4.0, triplet=0.5))
    return (out / "log.csv").read_text()


def rows(out):
    with (out / "log.csv").open(newline="") as stream:
        return [(int(row["stage"]), int(row["step"]), row["loss"], row["mean_ap"]) for row in csv.DictReader(stream)]


def test_a_row_is_there_when_it_is_written(tmp_path):
    log = tmp_path / "deep" / "run" / "log.csv"
    with Journal(log.parent, PARTS) as journal:
        assert log.read_text() == HEADER
        journal.write(report(1, 10, identity=6.5))
        assert log.read_text() == HEADER + "1,10,1.0,6.5,6.5,,0.001,500.0,,\n"
        journal.measured(Measured(1, 10, 1.0, 0.25, 0.5, best=True))
        assert log.read_text() == HEADER + "1,10,1.0,6.5,6.5,,0.001,500.0,,\n1,10,1.0,,,,,,0.25,0.5\n"
        journal.write(report(2, 20, identity=4.0, triplet=0.5))
    assert log.read_text().endswith("\n2,20,2.0,4.5,4.0,0.5,0.001,500.0,,\n")
    assert [file.name for file in log.parent.iterdir()] == ["log.csv"]


def test_what_was_written_stays_when_the_run_breaks_off(tmp_path):
    def run():
        with Journal(tmp_path, PARTS) as journal:
            journal.write(report(1, 10, identity=6.5))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert rows(tmp_path) == [(1, 10, "6.5", "")]


def test_a_part_that_was_not_announced_is_refused(tmp_path):
    with Journal(tmp_path, PARTS) as journal, pytest.raises(ValueError, match="circle"):
        journal.write(report(1, 10, circle=1.0))


class TestResumed:
    def test_rows_up_to_the_state_are_kept_and_new_ones_follow(self, tmp_path):
        fill(tmp_path)
        with Journal(tmp_path, PARTS, after=(1, 20)) as journal:
            assert rows(tmp_path) == [(1, 10, "6.5", ""), (1, 20, "5.5", ""), (1, 20, "", "0.25")]
            journal.write(report(1, 30, identity=1.5))
        assert rows(tmp_path)[3:] == [(1, 30, "1.5", "")]
        assert [file.name for file in tmp_path.iterdir()] == ["log.csv"]

    @pytest.mark.parametrize(("after", "kept"), [((1, 0), 0), ((1, 15), 1), ((1, 900), 3), ((2, 9), 3), ((2, 10), 4)])
    def test_stages_come_before_steps(self, tmp_path, after, kept):
        lines = fill(tmp_path).splitlines(keepends=True)
        with Journal(tmp_path, PARTS, after=after):
            pass
        assert (tmp_path / "log.csv").read_text() == "".join(lines[: 1 + kept])

    def test_a_log_with_nothing_to_drop_is_not_written_again(self, tmp_path):
        fill(tmp_path)
        before = (tmp_path / "log.csv").stat()
        with Journal(tmp_path, PARTS, after=(2, 10)):
            pass
        after = (tmp_path / "log.csv").stat()
        assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)

    def test_a_line_that_was_being_written_is_dropped(self, tmp_path):
        whole = fill(tmp_path)
        (tmp_path / "log.csv").write_text(whole + "2,20,2.0,3")
        with Journal(tmp_path, PARTS, after=(2, 30)):
            pass
        assert (tmp_path / "log.csv").read_text() == whole

    def test_line_ends_of_a_spreadsheet_are_no_damage(self, tmp_path):
        (tmp_path / "log.csv").write_bytes(fill(tmp_path).replace("\n", "\r\n").encode())
        with Journal(tmp_path, PARTS, after=(1, 10)):
            pass
        assert rows(tmp_path) == [(1, 10, "6.5", "")]

    @pytest.mark.parametrize(
        ("line", "got"),
        [
            ("1,20,2.0,5.5,5.5,,0.001,500.0,\n", "1,20,2.0,5.5,5.5,,0.001,500.0,"),
            ("1,20,2.0,5.5,x,,0.001,500.0,,\n", "1,20,2.0,5.5,x,,0.001,500.0,,"),
            (",20,2.0,5.5,,,0.001,500.0,,\n", ",20,2.0,5.5,,,0.001,500.0,,"),
            ('"1,20,2.0,5.5,,,0.001,500.0,,\n', '"1,20,2.0,5.5,,,0.001,500.0,,'),
            ("\n", "an empty line"),
            ("\0\0\0\n", "\0\0\0"),
        ],
    )
    def test_a_damaged_log_is_refused_and_left_as_it_is(self, tmp_path, line, got):
        lines = fill(tmp_path).splitlines(keepends=True)
        damaged = "".join([*lines[:2], line, *lines[3:]])
        (tmp_path / "log.csv").write_text(damaged)
        with pytest.raises(TrainingError) as caught, Journal(tmp_path, PARTS, after=(1, 10)):
            pass
        assert str(caught.value) == (
            f"{tmp_path / 'log.csv'} is damaged in line 3\n  got: {got}\n"
            f"  expected: 10 cells, each empty or a number\n  to do: mend the line or take it out, or {AFRESH}"
        )
        assert (tmp_path / "log.csv").read_text() == damaged

    def test_the_log_of_another_run_is_refused_and_left_as_it_is(self, tmp_path):
        before = fill(tmp_path)
        with pytest.raises(TrainingError) as caught, Journal(tmp_path, ["identity", "circle"], after=(1, 10)):
            pass
        assert str(caught.value) == (
            f"{tmp_path / 'log.csv'} is the log of another run\n  got: the columns {HEADER.strip()}\n"
            f"  expected: {HEADER.strip().replace('triplet', 'circle')}\n"
            f"  to do: put the log of this run back, or {AFRESH}"
        )
        assert (tmp_path / "log.csv").read_text() == before

    @pytest.mark.parametrize(
        ("content", "said"),
        [(None, "is not there"), (b"", "is empty"), (b"stage,st", "is empty"), (b"\xff\xfe\n", "cannot be read")],
    )
    def test_a_log_that_is_gone_is_refused(self, tmp_path, content, said):
        if content is not None:
            (tmp_path / "log.csv").write_bytes(content)
        with pytest.raises(TrainingError, match=rf"log\.csv {said}\n(.*\n)*  to do: put it back, or {AFRESH}"):
            Journal(tmp_path, PARTS, after=(1, 10)).__enter__()

    def test_a_place_that_cannot_be_written_to(self, tmp_path):
        (tmp_path / "log.csv").mkdir()
        with pytest.raises(OutputError, match=r"Cannot write .*log\.csv"):
            Journal(tmp_path, PARTS).__enter__()


# -- TensorBoard -------------------------------------------------------------------------------------------------------


def events(out, stage):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(out / "tensorboard" / f"stage-{stage}")).Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_events_of_each_stage(tmp_path):
    pytest.importorskip("tensorboard")
    fill(tmp_path, tensorboard=True)
    first, second = events(tmp_path, 1), events(tmp_path, 2)
    assert first["loss/loss"] == first["loss/identity"] == [(10, 6.5), (20, 5.5)]
    assert first["validation/mean_ap"] == [(20, 0.25)]
    assert first["validation/rank1"] == [(20, 0.5)]
    assert first["images_per_second"] == [(10, 500.0), (20, 500.0)]
    assert first["lr"] == [(10, pytest.approx(1e-3)), (20, pytest.approx(1e-3))]
    assert "loss/triplet" not in first
    assert (second["loss/loss"], second["loss/triplet"]) == ([(10, 4.5)], [(10, 0.5)])


def test_events_of_a_resumed_run_take_the_place_of_later_ones(tmp_path):
    pytest.importorskip("tensorboard")
    fill(tmp_path, tensorboard=True)
    with Journal(tmp_path, PARTS, after=(1, 10), tensorboard=True) as journal:
        journal.write(report(1, 30, identity=1.5))
        journal.write(report(2, 5, identity=1.0))
    assert events(tmp_path, 1)["loss/loss"] == [(10, 6.5), (30, 1.5)]
    assert events(tmp_path, 2)["loss/loss"] == [(5, 1.0)]


def test_a_new_run_in_an_old_folder_shows_only_its_own_events(tmp_path):
    pytest.importorskip("tensorboard")
    fill(tmp_path, tensorboard=True)
    with Journal(tmp_path, PARTS, tensorboard=True) as journal:
        journal.write(report(1, 15, identity=1.5))
    assert events(tmp_path, 1)["loss/loss"] == [(15, 1.5)]


def test_tensorboard_that_is_not_installed_is_said_before_anything_is_written(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in ("torch.utils.tensorboard", "reidkit.train.events"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(RuntimeMissing) as caught:
        Journal(tmp_path / "run", PARTS, tensorboard=True)
    assert str(caught.value) == "tensorboard is not installed\n  to do: pip install 'reidkit[train]'"
    assert not (tmp_path / "run").exists()


def test_the_log_alone_needs_no_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert fill(tmp_path).count("\n") == 5
