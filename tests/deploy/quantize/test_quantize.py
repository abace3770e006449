"""A bundle that gets a table and two graphs: what lies in it then, who runs it, and tables that do not fit."""

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest

from conditions import as_installed
from quantizable_bundle import INPUT, nodes, write, write_pictures
from reidkit.bundle import INT8_MODELS, file_sha256, open_bundle
from reidkit.calibration import Range, calibration_bytes
from reidkit.deploy.quantize.calibrate import calibration_of, observe, quantizable_graph
from reidkit.deploy.quantize.pictures import pictures_of
from reidkit.deploy.quantize.placement import place
from reidkit.deploy.quantize.quantize import check_table, kept_in_float, quantize, read_table, trained_table
from reidkit.errors import BundleError, ConfigError, ModelError
from reidkit.runtime import load
from reidkit.types import Crop, Split
from rounded_graphs import run
from small_bundle import put

FILES = ["calibration.cache", "calibration.json", "model.int8-cpu.onnx", "model.int8-tensorrt.onnx"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantised")
    bundle, pictures = write(folder / "small.reid"), write_pictures(folder / "people")
    return bundle, pictures, calibration_of(bundle, observe(bundle, pictures, threads=1), "minmax")


@pytest.fixture
def bundle(made, tmp_path):
    shutil.copytree(made[0].path, tmp_path / "small.reid")
    return open_bundle(tmp_path / "small.reid")


@pytest.fixture
def table(made):
    return made[2]


def test_a_bundle_gets_four_files_and_stays_what_it_was(bundle, table):
    before = dict(bundle.manifest.files)
    result = quantize(bundle, table)
    assert result == open_bundle(bundle.path)
    assert sorted(set(result.manifest.files) - set(before)) == FILES
    assert {name: digest for name, digest in result.manifest.files.items() if name in before} == before
    assert replace(result.manifest, files={}) == replace(bundle.manifest, files={})
    assert read_table(result) == table
    assert (bundle.path / "calibration.cache").read_bytes().startswith(b"TRT-8600-EntropyCalibration2\n")
    for kind, name in INT8_MODELS.items():
        model = onnx.load(result.int8_model(kind))
        onnx.checker.check_model(model, full_check=True)
        assert model.producer_name == "reidkit"
        assert result.int8_model(kind).name == name
        assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["crops", "embeddings"]


def test_the_same_table_gives_the_same_bytes(bundle, table, made, tmp_path):
    first = quantize(bundle, table).manifest.files
    assert quantize(open_bundle(bundle.path), table).manifest.files == first
    shutil.copytree(made[0].path, tmp_path / "again.reid")
    assert quantize(open_bundle(tmp_path / "again.reid"), table).manifest.files == first


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_engines_run_it_near_the_float_graph(bundle, table, runtime):
    result = quantize(bundle, table)
    crops = np.random.default_rng(1).integers(0, 256, (5, INPUT.height, INPUT.width, 3), dtype=np.uint8)
    truth = run(quantizable_graph(result), {"crops": crops})[0]
    got = load(result.path, runtime, precision="int8", threads=1).embed(crops)
    assert 0 < np.abs(got - truth).max() < 0.03 * np.abs(truth).max()


def test_another_table_takes_the_place_of_the_first(bundle, table):
    first = quantize(bundle, table)
    second = quantize(first, kept_in_float(table, ("two", "stem", "two")))
    assert read_table(second).floats == ("stem", "two")
    assert read_table(second).ranges == table.ranges
    for name in INT8_MODELS.values():
        assert second.manifest.files[name] != first.manifest.files[name]
    assert second.manifest.files["model.onnx"] == first.manifest.files["model.onnx"]
    # Of TensorRT's own table what the one rounded layer reads, which is added to what it makes as well.
    lines = (second.path / "calibration.cache").read_text().splitlines()
    assert [line.partition(":")[0] for line in lines[1:]] == ["a"]
    convolutions = [n for n in onnx.load(second.int8_model("cpu")).graph.node if n.op_type == "Conv"]
    assert [n.input[1].endswith("rounded") for n in convolutions] == [False, True, False]


def test_a_bundle_that_was_not_quantised(bundle):
    with pytest.raises(BundleError) as caught:
        read_table(bundle)
    assert str(caught.value) == (
        "small.reid was not quantised\n  expected: a calibration.json inside\n"
        f"  to do: reid quantize {bundle.path} --calibration DIR"
    )


def unchanged(bundle):
    return open_bundle(bundle.path) == bundle and bundle.int8_model("cpu") is None


def test_a_table_of_another_graph(bundle, table):
    with pytest.raises(BundleError, match=r"made from another graph than that of small\.reid\n  got: sha256 0000"):
        quantize(bundle, replace(table, graph="0" * 64))
    assert unchanged(bundle)


def test_a_table_of_an_older_placement(bundle, table):
    old = replace(table, placement=table.placement - 1)
    with pytest.raises(BundleError, match=f"rounded other values\n  got: placement {old.placement}\n  expected: "):
        check_table(bundle, old)
    with pytest.raises(BundleError, match="rounded other values"):
        quantize(bundle, old)
    assert unchanged(bundle)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"ranges": {"x": Range(-1.0, 1.0)}}, "The table has no range for value 'a'"),
        ({"scales": {"stem": (1.0,) * 6, "one": (1.0,) * 6}}, "The table does not fit layer two\n  got: 0 steps"),
        (
            {"scales": {"stem": (1.0,)}},
            "The table does not fit layer stem\n  got: 1 steps\n  expected: 6, one an output",
        ),
        ({"floats": ("three",)}, "Unknown layer to keep in float: 'three'"),
        ({"floats": ("stem", "one", "two")}, "Nothing is left to quantise"),
    ],
)
def test_a_table_that_lacks_something_changes_nothing(bundle, table, change, text):
    with pytest.raises((ConfigError, ModelError), match=text):
        quantize(bundle, replace(table, **change))
    assert unchanged(bundle)


def test_a_hostile_table_in_a_bundle(bundle, table):
    values = json.loads(calibration_bytes(table))
    for change, text in (
        ({"ranges": {**values["ranges"], "x": {"low": float("nan"), "high": 1.0}}}, "The range of 'x' cannot be read"),
        ({"ranges": "@"}, "cannot be read|has the wrong type"),
        ({"schema": 2}, "no table of ranges that this reidkit reads"),
    ):
        data = json.dumps({**values, **change}).replace('"@"', "[" * 5000 + "]" * 5000).encode()
        put(bundle.path, "calibration.json", data)
        with as_installed(), pytest.raises(BundleError, match=f"calibration.json (.|\n)*({text})"):
            read_table(open_bundle(bundle.path))


def test_a_bundle_that_was_replaced_meanwhile_is_left_alone(bundle, table):
    shutil.rmtree(bundle.path)
    other = write(bundle.path, changed={"two.bias": np.ones(5, np.float32)})
    with pytest.raises(BundleError):
        quantize(bundle, table)
    assert unchanged(other)


def test_whatever_stays_float_the_table_serves(bundle, table):
    result = bundle
    for floats in (("stem",), ("one",), ("two",), ("stem", "one"), ("one", "two")):
        result = quantize(result, kept_in_float(table, floats))
        for kind in INT8_MODELS:
            assert len(place(quantizable_graph(result), kind, floats=floats).layers) == 3 - len(floats)
            onnx.checker.check_model(onnx.load(result.int8_model(kind)), full_check=True)


def test_ranges_of_training_go_to_the_values_of_their_layers(bundle, made):
    crops = tuple(Crop(crop.path, crop.pid, crop.camid) for crop in made[1].crops)
    split = Split("folder", made[1].root, train=crops)
    learned = {"stem:output": Range(0.0, 3.0), "two:output": Range(-9.0, 9.0), "stem:input": Range(0.0, 2.0)}
    table = trained_table(bundle, learned, pictures_of(split), images=4, threads=1)
    ranges = read_table(quantize(bundle, table)).ranges
    assert (ranges["a"], ranges["e"], ranges["x"]) == (Range(0.0, 3.0), Range(-9.0, 9.0), Range(0.0, 2.0))
    assert ranges["d"] != Range(0.0, 3.0)
    with pytest.raises(BundleError, match=r"has no grid of this name\n  got: four:input, three:input"):
        trained_table(bundle, {"three:input": Range(0.0, 1.0), "four:input": Range(0.0, 1.0)}, pictures_of(split))


def test_the_graph_of_the_bundle_stays_to_the_byte(bundle, table):
    before = file_sha256(bundle.model)
    quantize(bundle, table)
    assert file_sha256(bundle.model) == before
    assert len(nodes()) == len(onnx.load(bundle.model).graph.node)
