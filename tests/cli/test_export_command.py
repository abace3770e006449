"""`reid export` from a bundle to the files of others."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from osnet_bundle import write_osnet
from reidkit.bundle import Golden, write_bundle
from reidkit.export import torch_export, weights_file
from reidkit.manifest import Embedding, Manifest
from reidkit.runtime.openvino_core import CORE
from reidkit.types import InputSpec


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_osnet(tmp_path_factory.mktemp("bundle") / "small.reid").path


def test_a_bundle_becomes_caffe_files(run, bundle, tmp_path):
    out = tmp_path / "small.prototxt"
    status, printed, _ = run("export", bundle, "--out", out)
    assert status == 0
    assert " ".join(printed.split()) == f"wrote {out} and small.caffemodel, which belongs to it"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.caffemodel", "small.prototxt"]
    status, _, err = run("export", bundle, "--out", out)
    assert status == 2
    assert "small.prototxt already exists" in err
    assert run("export", bundle, "--out", out, "--overwrite")[0] == 0


def test_caffe_files_need_no_torch(bundle, tmp_path):
    arguments = ["export", str(bundle), "--out", str(tmp_path / "small.prototxt")]
    code = f"import sys; sys.modules['torch'] = None\nfrom reidkit.cli import main\nsys.exit(main({arguments!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert (tmp_path / "small.caffemodel").is_file()


def test_the_weights_file_is_not_named_as_the_output(run, bundle, tmp_path):
    status, _, err = run("export", bundle, "--out", tmp_path / "small.caffemodel")
    assert status == 2
    assert "expected: NAME.prototxt; NAME.caffemodel is written beside it" in err
    assert "to do: call it small.prototxt" in err


def test_a_run_is_made_a_bundle_first(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.safetensors").touch()
    for source in (tmp_path / "run", tmp_path / "run" / "model.safetensors"):
        status, _, err = run("export", source, "--out", tmp_path / "people.prototxt")
        assert status == 2
        words = " ".join(err.split())
        assert "Caffe files are written from a bundle" in words
        assert f"to do: reid export {source} --out people.reid, then export that" in words


@pytest.mark.parametrize(("name", "made"), [("bits.reid", "OUT"), ("bits.wts", "BUNDLE"), ("bits.safetensors", None)])
def test_what_a_run_in_eight_bits_has_learned_is_not_lost_in_silence(run, tmp_path, monkeypatch, name, made):
    for module, function in ((torch_export, "export_checkpoint"), (weights_file, "export_weights")):
        monkeypatch.setattr(module, function, lambda *_, **__: None)
    ranges = {"reidkit.ranges": '{"backbone.conv1:output": {"low": 0.0, "high": 2.5}}'}
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors", ranges)
    out = tmp_path / name
    for source in (tmp_path, tmp_path / "model.safetensors"):
        status, _, err = run("export", source, "--out", out)
        assert status == 0
        bundle = out if made == "OUT" else made
        advice = f"`reid quantize {bundle} --ranges {source} --calibration DATA` makes the int8 graphs"
        said = f"warning: {source} was trained for eight bits, and {name} is in floats: {advice}"
        assert (said in " ".join(err.split())) == (made is not None)
        assert err.count("warning") == (made is not None)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert "warning" not in run("export", tmp_path, "--out", out)[2]


@pytest.mark.parametrize("name", ["x.prototxt", "x.wts", "x.xml"])
@pytest.mark.parametrize("option", [("--name", "new"), ("--licence", "permissive")])
def test_files_for_others_have_no_place_for_facts(run, bundle, tmp_path, name, option):
    status, _, err = run("export", bundle, "--out", tmp_path / name, *option)
    assert status == 2
    assert f"{name} has no place for --name and --licence" in err


def test_something_that_is_no_bundle(run, tmp_path):
    status, _, err = run("export", tmp_path / "none.reid", "--out", tmp_path / "x.prototxt")
    assert status == 2
    assert "none.reid does not exist" in err


HEAD = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)


@pytest.fixture
def colors(tmp_path):
    """A bundle of a graph that runs: the mean colour and a linear map."""
    nodes = [
        helper.make_node("Cast", ["crops"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["mean", "head"], ["embeddings"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colors",
        [helper.make_tensor_value_info("crops", TensorProto.UINT8, ["n", 4, 2, 3])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["n", 64])],
        [numpy_helper.from_array(HEAD, "head")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    crops = np.random.default_rng(1).integers(0, 256, (3, 4, 2, 3), dtype=np.uint8)
    golden = Golden(crops, (crops.mean(axis=(1, 2)) @ HEAD).astype(np.float32))
    manifest = Manifest("colors", "person", InputSpec(4, 2), Embedding(64))
    return write_bundle(tmp_path / "in" / "colors.reid", manifest, model=model.SerializeToString(), golden=golden)


def test_a_bundle_becomes_openvino_ir(run, colors, tmp_path):
    out = tmp_path / "small.xml"
    status, printed, _ = run("export", colors.path, "--out", out, "--precision", "fp16")
    assert status == 0
    assert " ".join(printed.split()) == f"wrote {out} and small.bin, which belongs to it"
    crops = colors.golden().crops
    got = CORE.compile_model(str(out), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(crops)[0]
    np.testing.assert_allclose(got, crops.mean(axis=(1, 2)) @ HEAD.astype(np.float16), rtol=1e-4, atol=1e-3)
    assert run("export", colors.path, "--out", tmp_path / "full.xml")[0] == 0
    assert (tmp_path / "full.bin").stat().st_size > 1.5 * (tmp_path / "small.bin").stat().st_size
    status, _, err = run("import", out, "--out", tmp_path / "again.reid")
    assert status == 2
    words = " ".join(err.split())
    assert f"{out} is reidkit's own export, not a foreign network" in words
    assert "to do: use the bundle that it was exported from" in words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.xml", "--precision", "int8"], "to do: reid quantize"),
        (["x.xml", "--precision", "bf16"], "openvino does not run this bundle in bfloat16 here"),
        (["x.xml", "--precision", "half"], "Unknown precision 'half'"),
        (["x.bin"], "to do: call it x.xml"),
        (["x.wts", "--precision", "fp16"], "--precision would change nothing in x.wts"),
    ],
)
def test_what_cannot_be_exported(run, bundle, tmp_path, arguments, message):
    name, *options = arguments
    status, _, err = run("export", bundle, "--out", tmp_path / name, *options)
    assert status == 2
    assert message in " ".join(err.split())
    assert list(tmp_path.iterdir()) == []


def test_openvino_ir_of_a_run(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.safetensors").touch()
    status, _, err = run("export", tmp_path / "run", "--out", tmp_path / "people.xml")
    assert status == 2
    assert "OpenVINO IR is written from a bundle" in " ".join(err.split())
