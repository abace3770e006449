"""`reid quantize`: what it says, writes and refuses; what the other commands then make of the bundle."""

import json
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import typer
from safetensors.numpy import save_file

import quantizable_bundle
from reidkit.bundle import file_sha256, open_bundle
from reidkit.calibration import Calibration, Range, parse_calibration
from reidkit.cli import quantize
from reidkit.deploy import verify
from reidkit.deploy.quantize import sensitivity
from reidkit.types import Split
from small_bundle import sign


@pytest.fixture
def _tolerant(monkeypatch):
    """Instance normalisation over the two positions of the tiny model's maps makes rounding large."""
    monkeypatch.setitem(verify.TOLERANCES, "int8", verify.Tolerance(10.0, -1.0))


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    return shutil.copytree(tiny_bundle, tmp_path / "tiny.reid")


def table_of(bundle):
    path = open_bundle(bundle).calibration
    assert path is not None
    return parse_calibration(path.read_bytes(), source=str(path))


@pytest.mark.usefixtures("_tolerant")
def test_a_bundle_is_quantised_and_every_command_knows_it(run, bundle, market):
    status, out, err = run("quantize", bundle, "--calibration", market, "--images", 8)
    assert status == 0, err
    assert "ranges seen on 8 pictures of market1501 market, train" in out
    assert "8 pictures show little of what values can be; 512 are usual" in " ".join(err.split())
    assert out.count("passed") == 3  # two engines, and the graph for TensorRT
    table = table_of(bundle)
    assert (table.method, table.source, len(table.pictures), table.floats) == ("minmax", "train", 8, ())
    assert all(picture.name.startswith("bounding_box_train/") for picture in table.pictures)

    # The same table with a layer in float: no picture is looked at again.
    status, out, err = run("quantize", bundle, "--keep-float", "backbone.conv1")
    assert status == 0, err
    assert "in float: backbone.conv1" in out
    assert table_of(bundle).pictures == table.pictures
    assert table_of(bundle).floats == ("backbone.conv1",)

    status, out, _ = run("info", bundle)
    assert "minmax, of 8 pictures of market1501 market (train)" in " ".join(out.split())
    status, out, err = run("bench", bundle, "--runtime", "onnxruntime", "--seconds", 0, "--batch", 1)
    assert status == 0, err
    assert out.count("int8") == 2
    status, out, err = run("verify", bundle, "--runtime", "onnxruntime", "--data", market, "--max-map-drop", 100)
    assert status == 0, err
    assert "onnxruntime int8" in out
    assert "flattered" not in err


@pytest.mark.usefixtures("_tolerant")
def test_pictures_to_test_on_are_taken_when_asked_for_and_that_is_said_each_time(run, bundle, market, tmp_path):
    command = ("quantize", bundle, "--calibration", market, "--subset", "gallery", "--method", "percentile")
    status, _, err = run(*command, "--percentile", 99.9, "--seed", 3)
    assert status == 0, err
    assert "accuracy that is measured on them is of pictures that were seen" in " ".join(err.split())
    assert (table_of(bundle).source, table_of(bundle).percentile, table_of(bundle).seed) == ("gallery", 99.9, 3)
    command = ("verify", bundle, "--runtime", "onnxruntime", "--precision", "int8", "--max-map-drop", 100)
    status, _, err = run(*command, "--data", market)
    assert "calibrated on 7 of these pictures: what is measured on them is flattered" in " ".join(err.split())
    status, _, _ = run("card", bundle, "--out", tmp_path / "card")
    assert status == 0
    card = (tmp_path / "card.md").read_text()
    assert "percentile 99.9, of" in card
    assert "Those are pictures to test on" in card


@pytest.mark.usefixtures("_tolerant")
def test_a_plain_folder_will_do(run, bundle, market):
    status, out, err = run("quantize", bundle, "--calibration", market / "bounding_box_train", "--method", "mse")
    assert status == 0, err
    assert "12 pictures of folder bounding_box_train, folder" in out
    assert table_of(bundle).source == "folder"


@pytest.mark.usefixtures("_tolerant")
@pytest.mark.parametrize("place", ["query", ".", "../linked"])
def test_a_folder_of_pictures_to_test_on_is_known_as_such(run, bundle, market, monkeypatch, place):
    monkeypatch.chdir(market / "query" if place == "." else market)
    if place == "../linked":
        (market.parent / "linked").symlink_to(market / "query")
    status, out, err = run("quantize", bundle, "--calibration", place)
    assert status == 0, err
    assert "7 pictures of market1501 market, query" in out
    assert "accuracy that is measured on them is of pictures that were seen" in " ".join(err.split())
    assert all(picture.name.startswith("query/") for picture in table_of(bundle).pictures)


def test_an_engine_that_comes_out_wrong_is_told(run, bundle, market, monkeypatch):
    monkeypatch.setitem(verify.TOLERANCES, "int8", verify.Tolerance(0.0, 0.5, mean=verify.Tolerance(0.0, 1.0)))
    status, out, err = run("quantize", bundle, "--calibration", market, "--images", 4)
    assert status == 1
    assert out.count("FAILED") == 3
    assert out.count(" mean cosine ") == 2
    told = "tiny.reid now has int8 graphs that fail"
    text = " ".join(err.split())
    cpu = f"`reid verify {bundle} --data ROOT --precision int8`"
    tensorrt = f"`reid verify {bundle} --data ROOT --runtime tensorrt --precision int8` where an engine was built"
    assert f"{told}. What they cost on real pictures is told by {cpu} and {tensorrt}; to quantise" in text
    assert "there is --keep-float LAYER, other pictures (--calibration), another --method, --search" in text
    status, _, err = run("quantize", bundle)
    assert status == 1
    assert f"{told}, in place of earlier ones. What they" in " ".join(err.split())


@pytest.mark.usefixtures("_tolerant")
def test_the_fewest_layers_are_found(run, bundle, market, tmp_path):
    command = ("quantize", bundle, "--calibration", market, "--search", "--data", market, "--max-map-drop", 100)
    status, out, err = run(*command, "--plot", tmp_path / "blocks.png")
    assert status == 0, err
    assert "backbone.layer1.0" in out
    assert "no layer has to stay float" in out
    assert "The choice was made" not in out
    assert (tmp_path / "blocks.png").read_bytes().startswith(b"\x89PNG")
    assert table_of(bundle).floats == ()


@pytest.mark.parametrize(
    ("floats", "drop", "met", "text"),
    [
        (
            ["a"],
            -0.0044,
            True,
            "1 layer stays float, 25.0 % of the work: 0.44 points of 90.00 are gained where 0.5 may be lost, mean "
            "cosine 0.9900 where 0.97 has to be The choice was made by folder made up: accuracy on it is flattered",
        ),
        (["a", "b"], 0.004, True, "2 layers stay float, 25.0 % of the work: 0.40 points of 90.00 are lost where 0.5"),
        (["a"], 0.4, False, "no choice of layers meets it: with 1 in float, 40.00 points of 90.00 are lost where 0.5"),
    ],
)
def test_what_a_search_has_found_is_said(floats, drop, met, text, tmp_path, monkeypatch, capsys):
    small, table = quantizable_bundle.write(tmp_path / "small.reid"), Calibration("0" * 64, 1, "minmax", {}, {})
    rounded = SimpleNamespace(error=0.1, mean_ap=0.8)
    agreement = SimpleNamespace(mean_cosine=0.99, least_cosine=0.97)
    chosen = SimpleNamespace(floats=tuple(floats), drop=drop, agreement=agreement)
    found = SimpleNamespace(rounded=rounded, groups=(), chosen=chosen, mean_ap=0.9, float_share=0.25, met=met)
    monkeypatch.setattr(sensitivity, "search", lambda *_, **__: found)
    with nullcontext() if met else pytest.raises(typer.Exit):
        quantize._searched(small, table, Split("folder", tmp_path / "made up"), 0.005, None, None)
    assert text in " ".join("".join(capsys.readouterr()).split())


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([], "was not quantised"),
        (["--images", "8", "--seed", "0"], "--images, --seed would change nothing without --calibration"),
        (["--images", "0"], "--images would change nothing without --calibration"),
        (
            ["--calibration", "MARKET", "--ranges", "MARKET", "--skip-unreadable"],
            "--skip-unreadable would change nothing beside --ranges to do: leave out --skip-unreadable",
        ),
        (["--calibration", "MARKET", "--percentile", "99"], "--percentile would change nothing of --method minmax"),
        # Both before a picture is looked for.
        (
            ["--calibration", "nowhere", "--method", "percentile", "--percentile", "40"],
            "The percentile is out of range got: 40.0",
        ),
        (
            ["--calibration", "nowhere", "--keep-float", "backbone.conv9"],
            "Unknown layer to keep in float: 'backbone.conv9' expected: one of backbone.conv1, backbone.layer1.0.conv1",
        ),
        (["--calibration", "MARKET", "--images", "1"], "Too few images to calibrate with"),
        (["--calibration", "MARKET", "--images", "0"], "Too few images to calibrate with got: 0 expected: 2 or more"),
        (["--calibration", "nowhere"], "nowhere"),
        (["--calibration", "MARKET", "--search"], "--search measures on a data set"),
        (
            ["--calibration", "MARKET", "--search", "--data", "nowhere", "--plot", "MARKET/blocks.jpg"],
            "blocks.jpg is of no format that plots are drawn in expected: a name ending in .png or .svg",
        ),
        (["--calibration", "MARKET", "--data", "MARKET"], "--data would change nothing without --search"),
        (["--calibration", "MARKET/query", "--subset", "query"], "is no data set, and has no subsets"),
    ],
)
def test_what_cannot_be_is_refused_and_the_bundle_stays(run, bundle, market, given, text):
    before = json.loads((bundle / "manifest.json").read_text())
    status, _, err = run("quantize", bundle, *(word.replace("MARKET", str(market)) for word in given))
    assert status == 2
    assert text in " ".join(err.split())
    assert json.loads((bundle / "manifest.json").read_text()) == before


@pytest.fixture
def trained(bundle, tmp_path):
    """A run in eight bits that the bundle is of, as far as a bundle's manifest can tell."""
    ranges = {
        "reidkit.ranges": '{"backbone.conv1:output": {"low": 0.0, "high": 2.5}}',
        "reidkit.floats": '["backbone.layer1.0.conv1"]',
    }
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "model.safetensors", ranges)
    sign(bundle, {"provenance": {"source_sha256": file_sha256(tmp_path / "model.safetensors")}})
    return tmp_path


@pytest.mark.usefixtures("_tolerant")
def test_what_training_has_learned_and_has_not(run, bundle, trained, market, monkeypatch):
    command = ("quantize", bundle, "--ranges", trained, "--calibration", market)
    status, _, err = run(*command, "--images", 0)
    assert status == 2
    assert "Too few images to calibrate with got: 0 expected: 2 or more; 512 are usual" in " ".join(err.split())
    assert open_bundle(bundle).calibration is None
    status, _, err = run(*command, "--images", 4)
    assert status == 0, err
    table = table_of(bundle)
    assert (table.method, len(table.pictures)) == ("qat", 4)
    assert Range(0.0, 2.5) in table.ranges.values()
    assert table.floats == ("backbone.layer1.0.conv1",)
    status, _, err = run(*command, "--images", 4, "--keep-float", "backbone.conv1")
    assert status == 0, err
    assert table_of(bundle).floats == ("backbone.conv1", "backbone.layer1.0.conv1")
    monkeypatch.setitem(verify.TOLERANCES, "int8", verify.Tolerance(0.0, 1.0))
    status, _, err = run(*command, "--images", 4)
    assert status == 1
    assert " ".join(err.split()).endswith("to quantise it otherwise, there is --keep-float LAYER")


def test_unreadable_pictures(run, bundle, market, tmp_path, monkeypatch):
    monkeypatch.setitem(verify.TOLERANCES, "int8", verify.Tolerance(10.0, -1.0))
    broken = shutil.copytree(market / "bounding_box_train", tmp_path / "crops")
    first = sorted(broken.iterdir())[0]
    first.write_bytes(b"no picture")
    status, _, err = run("quantize", bundle, "--calibration", broken)
    assert status == 2
    assert first.name in err
    assert "to do: --skip-unreadable takes other pictures for such; or replace or remove the file" in err
    status, out, err = run("quantize", bundle, "--calibration", broken, "--skip-unreadable")
    assert status == 0, err
    assert "ranges seen on 11 pictures" in out
    assert first.name in err
