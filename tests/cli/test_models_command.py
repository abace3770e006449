"""`reid models`: what the table and its JSON say."""

import importlib.util
import json

import pytest

from reidkit.architecture import CATALOGUE


def test_the_table(run):
    status, out, err = run("models", "osnet-x0.25", "sbs-r50-ibn")
    assert status == 0
    assert "counting" in err
    cells = [[cell.strip() for cell in line.split("│")] for line in out.splitlines() if "│" in line]
    # torchreid's zoo: 0.2 M parameters, 0.08 GFLOPs. SBS takes higher crops.
    assert cells[0] == ["osnet-x0.25", "256 x 128", "0.20 M", "0.082", "512"]
    assert cells[1][:2] == ["sbs-r50-ibn", "384 x 128"]
    assert cells[1][-1] == "2048"
    assert "a multiply-add counted once" in out


def test_a_stated_size_holds_for_all(run):
    status, out, _ = run("models", "resnet18", "mgn-r50-ibn", "--size", "256x128", "--json")
    assert status == 0
    small, parts = json.loads(out)
    assert (parts["name"], parts["height"], parts["width"], parts["dim"]) == ("mgn-r50-ibn", 256, 128, 2048)
    assert small == {
        "name": "resnet18",
        "height": 256,
        "width": 128,
        "parameters": 11_177_536,  # 11,176,512 of the backbone (torchvision, less its classifier) and 1,024 of the neck
        "multiply_adds": 16 * 124_354_560,  # of 64 x 32, by hand in tests/models/test_cost.py
        "dim": 512,
    }


def test_without_a_name_all_are_listed(run, monkeypatch):
    few = {name: CATALOGUE[name] for name in ("resnet18", "mgn-r50-ibn")}
    monkeypatch.setattr("reidkit.cli.models.CATALOGUE", few)
    status, out, _ = run("models", "--json")
    assert status == 0
    assert [(row["name"], row["height"]) for row in json.loads(out)] == [("resnet18", 256), ("mgn-r50-ibn", 384)]


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
def test_a_network_of_timm(run):
    status, out, _ = run("models", "timm:vit_tiny_patch16_224", "--json")
    assert status == 0
    (row,) = json.loads(out)
    assert (row["height"], row["width"], row["dim"]) == (256, 128, 192)


def test_an_unknown_name_suggests_the_nearest(run):
    status, out, err = run("models", "resnet18", "resnet5")
    assert (status, out) == (2, "")
    assert "Unknown model 'resnet5'" in err
    assert "did you mean 'resnet50'?" in err


@pytest.mark.parametrize("size", ["256", "axb", "256x"])
def test_a_size_that_cannot_be_read(run, size):
    status, _, err = run("models", "resnet18", "--size", size)
    assert status == 2
    assert f"Cannot read --size\n  got: {size}\n  expected: HEIGHTxWIDTH" in err


def test_a_size_too_small(run):
    status, out, err = run("models", "resnet18", "--size", "1x1")
    assert (status, out) == (2, "")
    assert "takes no crop of 1x1 (height x width)" in err
