"""`reid train` in eight bits: what it begins with, and what becomes of the ranges. The training is tested elsewhere."""

import shutil

import pytest
import torch
from safetensors.torch import save_file

from reidkit.bundle import open_bundle
from reidkit.calibration import Range
from reidkit.cli import train
from reidkit.cli.outcome import Outcome
from reidkit.deploy.quantize import quantize


def test_without_a_bundle_it_says_what_to_do(run, market, tmp_path):
    arguments = ["train", "--data", market, "--out", tmp_path / "bits", "--recipe", "qat-cpu"]
    text = """\
error: Training in eight bits goes on from a bundle
  got: {}
  expected: --init NAME.reid, a trained network with its graph
  to do: train in floats first: `reid train` makes a bundle; `reid export` and `reid import` do of a file
"""
    assert run(*arguments) == (2, "", text.format("no --init"))
    file = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(1)}, file)
    assert run(*arguments, "--init", file) == (2, "", text.format(f"{file}, which is none"))
    assert not (tmp_path / "bits").exists()


@pytest.fixture
def learned(monkeypatch, tiny_bundle, tmp_path):
    """What the training is given, and the file and bundle that it would have left."""
    given = {}

    def learn(split, recipe, out, **options):
        given.update(recipe=recipe, out=out, **options)
        out.mkdir()
        ranges = '{"backbone.conv1:output": {"low": 0.0, "high": 2.5}}'
        save_file({"x": torch.zeros(1)}, out / "model.safetensors", {"reidkit.ranges": ranges})

    def finish(out, places, split, **_):
        shutil.copytree(tiny_bundle, places.bundle)
        return Outcome()

    monkeypatch.setattr(train, "learn", learn)
    monkeypatch.setattr(train, "finish", finish)
    return given


def test_the_bundle_says_what_is_trained_and_the_ranges_go_into_the_new_one(
    run, market, tmp_path, tiny_bundle, learned, monkeypatch
):
    quantised = []
    monkeypatch.setattr(quantize, "quantize_trained", lambda *arguments, **_: quantised.append(arguments))
    out = tmp_path / "bits"
    status, said, err = run(
        "train", "--data", market, "--out", out, "--recipe", "qat-tensorrt", "--init", tiny_bundle,
        "--set", "input.height=48", "--set", "augment.pad=0",
    )  # fmt: skip
    assert status == 0, err
    manifest = open_bundle(tiny_bundle).manifest
    assert learned["recipe"].model == manifest.architecture
    assert (learned["recipe"].input.height, learned["recipe"].input.width) == (48, manifest.input.width)
    rounding = learned["rounding"]
    assert rounding.engine == "tensorrt"
    assert len(rounding.layers) == 20  # convolutions of a ResNet-18
    assert rounding.layers[0].name == "backbone.conv1"
    assert rounding.ranges == {}
    ((bundle, ranges, split),) = quantised
    assert bundle.path == out / "bits.reid"
    assert ranges == {"backbone.conv1:output": Range(0.0, 2.5)}
    assert split.train
    assert said.endswith(f"quantised {out / 'bits.reid'}\n")
