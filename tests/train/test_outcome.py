"""What a run writes at its end: whole, described, and nothing that is not its own."""

from dataclasses import replace

import pytest
import torch
from safetensors import SafetensorError
from tiny_runs import RECIPE, TINY, tensors

import reidkit.models.checkpoint as checkpoint_module
from conditions import unprivileged
from reidkit.config import to_dict
from reidkit.errors import OutputError, TrainingError
from reidkit.models.checkpoint import load_checkpoint
from reidkit.models.model import build_model
from reidkit.train.outcome import Outcome, check_finite, describe_file
from reidkit.train.recipe import Stage

pytestmark = pytest.mark.usefixtures("narrow_networks")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_model(TINY, identities=3)


@pytest.fixture
def outcome(tmp_path):
    return Outcome(tmp_path / "run", TINY, RECIPE, "vehicle", "people: 3", "abc", "a.pth, sha256 12", None)


def names_in(folder):
    return sorted(file.name for file in folder.iterdir())


def test_a_checkpoint_says_what_it_is(network, outcome):
    outcome.write(network, "model.safetensors")
    loaded, facts = load_checkpoint(outcome.folder / "model.safetensors")
    assert all(torch.equal(t, network.state_dict()[name]) for name, t in loaded.state_dict().items())
    assert (facts.task, facts.input, facts.identities) == ("vehicle", RECIPE.input, "abc")
    assert facts.provenance.source == "run"
    assert facts.provenance.init == "a.pth, sha256 12"
    assert facts.provenance.teacher is None
    assert facts.provenance.dataset == "people: 3"
    assert facts.provenance.framework == f"torch {torch.__version__}"
    assert facts.provenance.recipe["optim"]["lr"] == RECIPE.optim.lr
    assert facts.provenance.recipe == to_dict(RECIPE)
    assert facts.provenance.created.endswith("+00:00")


def test_what_decides_the_outcome_beside_recipe_and_data(outcome):
    assert outcome.origin == {"task": "vehicle", "init": "a.pth, sha256 12", "teacher": None}


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_not_written(outcome, value):
    network = build_model(TINY, identities=3)
    outcome.write(network, "model.safetensors")
    before = (outcome.folder / "model.safetensors").read_bytes()
    with torch.no_grad():
        network.heads.weight[1, 2] = value
        network.backbone.bn1.running_mean[0] = value
    text = r"2 weights are not finite\n  got: backbone\.bn1\.running_mean, heads\.weight\n  expected: finite weights"
    with pytest.raises(TrainingError, match=text):
        outcome.write(network, "model.safetensors")
    with pytest.raises(TrainingError, match=text):
        check_finite(network)
    assert (outcome.folder / "model.safetensors").read_bytes() == before


def test_a_full_disk_leaves_the_earlier_checkpoint(network, outcome, monkeypatch):
    outcome.write(network, "model.safetensors")

    def full(*arguments):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint_module, "save_file", full)
    text = r"Cannot write .*model\.safetensors\n  got: .*No space left on device.*\n  to do: free some space; what was"
    with pytest.raises(OutputError, match=text):
        outcome.write(network, "model.safetensors")
    assert names_in(outcome.folder) == ["model.safetensors"]
    assert len(tensors(outcome.folder / "model.safetensors")) == len(network.state_dict())


LEFT = ("before.safetensors", "last.safetensors", "log.csv", "model.safetensors", "mine.txt", "state.pt")


@pytest.mark.parametrize(
    ("measured", "staged", "gone", "written"),
    [
        (False, False, {"state.pt", "last.safetensors", "before.safetensors"}, "model.safetensors"),
        (True, False, {"state.pt", "before.safetensors"}, "last.safetensors"),
        (True, True, {"state.pt"}, "last.safetensors"),
        (False, True, {"state.pt", "last.safetensors"}, "model.safetensors"),
    ],
)
def test_at_the_end_nothing_is_left_of_the_state_or_of_an_earlier_run(
    network, outcome, measured, staged, gone, written
):
    outcome.folder.mkdir()
    for name in LEFT:
        (outcome.folder / name).write_text("earlier")
    outcome = replace(outcome, recipe=replace(RECIPE, before=Stage())) if staged else outcome
    outcome.finish(network, measured=measured)
    assert set(names_in(outcome.folder)) == set(LEFT) - gone
    changed = {file.name for file in outcome.folder.iterdir() if file.read_bytes() != b"earlier"}
    assert changed == {written}


def test_a_state_that_nobody_goes_on_with(outcome):
    outcome.clear()  # nothing there
    outcome.folder.mkdir()
    (outcome.folder / "state.pt").touch()
    outcome.clear()
    assert names_in(outcome.folder) == []


def test_a_disk_without_room_is_refused_before_the_work(network, outcome, monkeypatch):
    weights = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    asked = []

    def usage(folder):
        asked.append(folder)
        return type("Usage", (), {"free": free})

    monkeypatch.setattr("reidkit.train.outcome.shutil.disk_usage", usage)
    free = 6 * weights
    outcome.check_room(network)
    assert asked == [outcome.folder.parent]  # the run's own folder is not there yet
    free -= 1
    with pytest.raises(OutputError, match=r"There is no room for the run in .*run\n  got: \d+ MB free\n  expected: \d"):
        outcome.check_room(network)


def test_a_place_that_cannot_be_written_to_is_refused_before_the_work(network, outcome):
    outcome.folder.mkdir(mode=0o555)
    text = r"Cannot write into .*run\n  got: .*run is a folder that you may not write to\n  to do: choose another"
    with unprivileged(outcome.folder), pytest.raises(OutputError, match=text):
        outcome.check_room(network)
    outcome.folder.rmdir()
    outcome.folder.write_text("a file")
    with pytest.raises(OutputError, match=r"Cannot write into .*run\n  got: .*run is no folder"):
        outcome.check_room(network)


def test_a_file_in_words(tmp_path):
    file = tmp_path / "run" / "model.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert describe_file(file) == f"model.safetensors, sha256 {digest}"
    assert describe_file(file.parent) == f"run, sha256 {digest}"
    assert describe_file(None) is None
