"""One process and two: who does what, and the same weights as one process with as many batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import draw_people, log_rows, people_in, split_of, tensors, with_optim
from two_processes import STILL

from reidkit.errors import OutputError, RuntimeMissing, TrainingError
from reidkit.train.loop import train
from reidkit.train.parallel import Team, assemble, is_follower

pytestmark = pytest.mark.usefixtures("narrow_networks")


def test_alone_nobody_is_asked():
    team = Team(torch.device("cpu"))
    assert (team.rank, team.size, team.leads) == (0, 1, True)
    gradient = torch.tensor([1.0, 2.0])
    team.average([gradient])
    assert gradient.tolist() == [1.0, 2.0]
    assert [team.any(True), team.any(False)] == [True, False]
    assert team.gather("x") == ["x"]
    assert team.share(lambda: "x") == "x"
    with team.together(), team.leader_first():
        pass
    with pytest.raises(OutputError, match="full"), team.together():
        raise OutputError("full")


@pytest.mark.parametrize(("rank", "expected"), [(None, False), ("0", False), ("1", True)])
def test_who_was_started_by_another(monkeypatch, rank, expected):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert is_follower() == expected


# -- devices -----------------------------------------------------------------------------------------------------------


def test_one_processor():
    assert assemble("cpu", 1).device == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "message"), [("gpu", "Unknown device 'gpu'"), ("meta", "Training does not run on 'meta'")]
)
def test_a_device_that_nobody_has(name, message):
    with pytest.raises(RuntimeMissing, match=rf"{message}\n  expected: cpu, cuda or cuda:N"):
        assemble(name, 1)


@pytest.mark.parametrize("seen", [0, 2])
def test_a_graphics_card_that_is_not_there(monkeypatch, seen):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    with pytest.raises(
        RuntimeMissing, match=rf"PyTorch sees no such CUDA device\n  got: cuda:{seen}\n  to do: say --device"
    ):
        assemble(f"cuda:{seen}", 1)


def test_fewer_graphics_cards_than_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        RuntimeMissing, match=r"There are fewer GPUs than asked for\n  got: 2\n  expected: 4\n  to do: say --devices 2"
    ):
        assemble("cuda", 4)


def test_several_devices_have_no_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(RuntimeMissing, match=r"several are asked for\n  got: cuda:1\n  to do: say cuda"):
        assemble("cuda:1", 2)


def test_several_devices_need_lightning_fabric(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(RuntimeMissing, match=r"lightning-fabric is not installed\n  to do: pip install"):
        assemble("cpu", 2)


# -- two processes -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What two processes wrote down; see `two_processes.py`."""
    pytest.importorskip("lightning_fabric")
    folder = tmp_path_factory.mktemp("both")
    (folder / "people").mkdir()
    draw_people(folder / "people")
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(here), "OMP_NUM_THREADS": "1"}
    environment.pop("LOCAL_RANK", None)
    program = [sys.executable, here / "two_processes.py", folder]
    ended = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr
    return folder, [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_both_end_and_one_of_them_talks(both):
    folder, (leader, follower) = both
    assert (leader["follower"], follower["follower"]) == (False, True)
    assert leader["still"] == follower["still"] == 3
    assert sorted(file.name for file in (folder / "still").iterdir()) == ["log.csv", "model.safetensors"]
    assert "crops: 0 MB in memory" in leader["notes"]
    assert follower["notes"] == []


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_from_as_many_batches(both):
    """Every batch is normalised by its own statistics in both cases, so all that learns is equal to the bit.

    The running statistics are not: those of the first process are of its own batches.
    """
    folder, _ = both
    split = split_of(people_in(folder / "people"), folder / "people")
    run = train(split, with_optim(STILL, accumulate=2), folder / "alone", report_every=1)
    alone, together = tensors(run.checkpoint), tensors(folder / "still" / "model.safetensors")
    statistics = {name for name in alone if "running_" in name or "num_batches" in name}
    assert all(torch.equal(alone[name], together[name]) for name in alone.keys() - statistics)
    assert any(not torch.equal(alone[name], together[name]) for name in statistics)
    lr = [row["lr"] for row in log_rows(folder / "alone")]
    assert lr == [row["lr"] for row in log_rows(folder / "still")]


@pytest.mark.slow
def test_two_processes_that_are_interrupted_go_on_as_if_nothing_had_happened(both):
    folder, (leader, follower) = both
    assert leader["pieces"] == follower["pieces"] == leader["whole"] - 3 > 0
    for name in ("before.safetensors", "model.safetensors"):
        whole, pieces = tensors(folder / "whole" / name), tensors(folder / "pieces" / name)
        assert all(torch.equal(whole[key], pieces[key]) for key in whole)
    assert log_rows(folder / "pieces") == log_rows(folder / "whole")


@pytest.mark.slow
def test_nobody_waits_for_one_that_has_failed(both):
    _, (leader, follower) = both
    assert leader["failed"] == "ReidkitError the leader fails"
    assert follower["failed"].startswith("TrainingError Another process of this run has failed")


@pytest.mark.slow
def test_synchronised_normalisation_needs_gpus(both):
    _, seen = both
    for process in seen:
        assert process["synchronised"].startswith("ConfigError Batch normalisation over several processes needs GPUs")


@pytest.mark.slow
def test_what_they_tell_each_other(both):
    _, seen = both
    for process, role in zip(seen, ("leads", "follows"), strict=True):
        assert process["team"] == {
            "average": [[1.5, 1.5], [[15.0, 15.0, 15.0]]],
            "any": [True, False],
            "gather": ["process 0", "process 1"],
            "share": "from process 0",
            "equalize": 0.0,
            "leader_first": [role],
        }


def test_the_leaders_failure_reaches_the_others_while_they_wait(monkeypatch):
    """As the follower sees it: the vote says that somebody failed."""
    team = Team(torch.device("cpu"))
    monkeypatch.setattr(team, "any", lambda failed: True)
    monkeypatch.setattr(team, "rank", 1)
    with (
        pytest.raises(TrainingError, match=r"Another process of this run has failed\n  to do: see what"),
        team.leader_first(),
    ):
        raise AssertionError("went on")
