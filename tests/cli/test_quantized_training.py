"""`reid train` in eight bits: what it begins with, and what becomes of the ranges. The training is tested elsewhere."""

import shutil

import pytest
import torch
from safetensors.torch import save_file

from reidkit.bundle import open_bundle
from reidkit.calibration import Range
from reidkit.cli import outcome, train
from reidkit.data import load_split
from reidkit.deploy import verify
from reidkit.deploy.quantize import quantize
from reidkit.deploy.quantize.pictures import pictures_of
from reidkit.errors import DataError
from small_bundle import sign


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


@pytest.fixture(scope="module")
def quantized(tiny_bundle, market, tmp_path_factory):
    """A bundle with a table, and a layer that stays float."""
    bundle = open_bundle(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("start") / "tiny.reid"))
    pictures = pictures_of(load_split(market))
    learned = {"backbone.conv1:output": Range(0.0, 2.5)}
    table = quantize.trained_table(bundle, learned, pictures, images=4)
    return quantize.quantize(bundle, quantize.kept_in_float(table, ("backbone.layer1.0.conv1",)))


@pytest.fixture
def learned(monkeypatch):
    """What the training is given, and what its end is."""
    given = {}

    def learn(split, recipe, out, **options):
        given.update(recipe=recipe, **options)
        out.mkdir()

    def finish(out, places, split, **options):
        return outcome.Outcome()

    monkeypatch.setattr(train, "learn", learn)
    monkeypatch.setattr(train, "finish", finish)
    return given


def begin(run, market, out, bundle, *arguments):
    status, _, err = run(
        "train", "--data", market, "--out", out, "--recipe", "qat-tensorrt", "--init", bundle, *arguments
    )
    assert status == 0, err


def test_the_bundle_says_what_is_trained(run, market, tmp_path, tiny_bundle, learned):
    begin(run, market, tmp_path / "bits", tiny_bundle, "--set", "augment.pad=0", "--set", "seed=3")
    manifest = open_bundle(tiny_bundle).manifest
    assert learned["recipe"].model == manifest.architecture
    assert learned["recipe"].input == manifest.input
    assert learned["recipe"].seed == 3
    rounding = learned["rounding"]
    assert rounding.engine == "tensorrt"
    assert len(rounding.layers) == 20  # convolutions of a ResNet-18
    assert rounding.layers[0].name == "backbone.conv1"
    assert (rounding.floats, rounding.ranges) == ((), {})


def test_what_its_table_says_counts_in_training(run, market, tmp_path, quantized, learned):
    begin(run, market, tmp_path / "bits", quantized.path, "--set", "augment.pad=0")
    rounding = learned["rounding"]
    assert rounding.floats == ("backbone.layer1.0.conv1",)
    assert len(rounding.layers) == 19
    assert "backbone.layer1.0.conv1" not in {layer.name for layer in rounding.layers}
    assert rounding.ranges["backbone.conv1:output"] == Range(0.0, 2.5)


@pytest.fixture
def ended(monkeypatch, tiny_bundle, market, tmp_path):
    """The end of a run whose export is a copy of a bundle, without engines, card and curves."""

    def end(tolerance=(10.0, -1.0), engine="cpu"):
        bundle = shutil.copytree(tiny_bundle, tmp_path / "bits.reid")
        sign(bundle, {"provenance": {"recipe": {"quantization": {"engine": engine}}}})
        save_file(
            {"x": torch.zeros(1)},
            tmp_path / "model.safetensors",
            {
                "reidkit.ranges": '{"backbone.conv1:output": {"low": 0.0, "high": 2.5}}',
                "reidkit.floats": '["backbone.layer1.0.conv1"]',
            },
        )
        monkeypatch.setattr(outcome, "_export", lambda *_, **__: open_bundle(bundle))
        monkeypatch.setattr(outcome, "hold_engines", lambda _: ([], True))
        monkeypatch.setitem(verify.TOLERANCES, "int8", verify.Tolerance(*tolerance))
        for name in ("_write_card", "_write_curves"):
            monkeypatch.setattr(outcome, name, lambda *_, **__: None)
        places = outcome.Places(bundle, tmp_path / "card", tmp_path / "curves.png")
        return outcome.finish(tmp_path, places, load_split(market)), bundle

    return end


def test_ranges_become_graphs_whose_accuracy_is_measured_too(run, ended, capsys):
    made, bundle = ended()
    out = capsys.readouterr().out
    assert made.status == 0
    assert made.report is not None
    assert made.report.embedded.precision == "float32"
    table = quantize.read_table(open_bundle(bundle))
    assert (table.method, table.floats) == ("qat", ("backbone.layer1.0.conv1",))
    accuracy = open_bundle(bundle).manifest.accuracy
    assert [(row.runtime, row.precision) for row in accuracy] == [("onnxruntime", "float32"), ("onnxruntime", "int8")]
    assert accuracy[0].mAP == made.report.mean_ap
    assert out.count("onnxruntime int8") == 1
    assert out.count("recorded in ") == 2
    assert [(row.runtime, row.passed) for row in made.parities] == [("graph for tensorrt", True)]
    status, described, _ = run("info", bundle)
    assert status == 0
    assert "measured (onnxruntime) " in described
    assert "measured (onnxruntime int8) " in described


def test_a_graph_for_tensorrt_that_comes_out_wrong_is_told(ended, capsys):
    made, bundle = ended(tolerance=(0.0, 1.0))
    assert made.status == 1
    told = " ".join(capsys.readouterr().err.split())
    assert f"{bundle.name} is not verified: its graph for TensorRT does not give what PyTorch gave" in told
    assert "graph for processors" not in told


def test_of_which_graph_the_accuracy_is_where_training_was_for_the_other(ended, capsys):
    ended(engine="tensorrt")
    told = " ".join(capsys.readouterr().err.split())
    assert "is of the graph for processors, and training was for TensorRT: `reid evaluate " in told


def test_accuracy_in_floats_stays_where_that_in_eight_bits_cannot_be_had(ended, monkeypatch, capsys):
    measure = outcome.measure

    def floats_only(bundle, split, runtime, settings, **options):
        if settings.precision == "int8":
            raise DataError("no such luck")
        return measure(bundle, split, runtime, settings, **options)

    monkeypatch.setattr(outcome, "measure", floats_only)
    made, bundle = ended()
    assert made.status == 2
    assert "error: no such luck" in capsys.readouterr().err
    assert made.report is not None
    assert [row.precision for row in open_bundle(bundle).manifest.accuracy] == ["float32"]
