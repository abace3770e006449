"""`reid verify` in several precisions, and on a data set."""

import shutil

import numpy as np
import pytest

from reidkit.deploy import verify
from reidkit.runtime.onnxruntime import OnnxRuntimeEmbedder
from reidkit.runtime.pytorch import PyTorchEmbedder


@pytest.fixture(autouse=True)
def _tolerant(monkeypatch):
    """Instance normalisation over the two positions of the tiny model's maps makes rounding large."""
    monkeypatch.setitem(verify.TOLERANCES, "float16", verify.Tolerance(0.1, 0.99))


@pytest.mark.usefixtures("plain_processor")
def test_every_precision_that_an_engine_has(run, tiny_bundle):
    status, out, _ = run("verify", tiny_bundle, "--precision", "fp16", "--precision", "fp32")
    assert status == 0
    assert out.count("passed") == 4  # three engines in float32, PyTorch in float16
    assert "not checked: onnxruntime in float16, which it does not run" in out
    assert "not checked: openvino in float16, which it does not run" in out


@pytest.mark.usefixtures("plain_processor")
def test_a_precision_that_a_named_engine_does_not_run_is_a_failure(run, tiny_bundle):
    status, out, err = run("verify", tiny_bundle, "--runtime", "openvino", "--precision", "bf16")
    assert status == 1
    assert "FAILED" in out
    assert "openvino does not run this bundle in bfloat16 here" in err


def test_on_a_data_set(run, tiny_bundle, market):
    command = ("verify", tiny_bundle, "--runtime", "pytorch", "--precision", "fp32", "--precision", "fp16")
    status, out, err = run(*command, "--data", market)
    assert status == 0, err
    assert "market1501 market, beside onnxruntime float32" in out
    assert out.count("passed") == 4
    assert "Cosines over 14 crops" in out
    assert "; 0.5 points may be lost" in out


def test_an_engine_that_finds_others_fails(run, tiny_bundle, market, monkeypatch):
    embed = PyTorchEmbedder.embed

    def blurred(self, crops):
        noise = np.random.default_rng(len(crops)).standard_normal((len(crops), 512))
        return embed(self, crops) * 0 + noise.astype(np.float32)

    monkeypatch.setattr(PyTorchEmbedder, "embed", blurred)
    monkeypatch.setitem(verify.TOLERANCES, "float32", verify.Tolerance(np.inf, -1.0))
    command = ("verify", tiny_bundle, "--runtime", "pytorch", "--data", market)
    status, out, _ = run(*command)
    assert status == 1
    assert "FAILED" in out
    status, out, _ = run(*command, "--max-map-drop", 100)
    assert status == 0
    assert "; 100 points may be lost" in out


def test_what_int8_costs_is_measured_also_where_drawn_crops_are_far_off(
    run, tiny_bundle, market, monkeypatch, tmp_path
):
    bundle = shutil.copytree(tiny_bundle, tmp_path / "tiny.reid")
    monkeypatch.setitem(verify.TOLERANCES, "int8", verify.Tolerance(0.0, 0.0, mean=verify.Tolerance(1.0, 0.1)))
    assert run("quantize", bundle, "--calibration", market, "--images", 8)[0] == 1
    command = ("verify", bundle, "--runtime", "onnxruntime", "--data", market, "--max-map-drop", 100)
    status, out, err = run(*command, "--precision", "int8")
    assert status == 1
    parity, _, agreement = out.partition("beside onnxruntime float32")
    assert "FAILED" in parity
    assert "passed" not in parity
    assert "onnxruntime int8" in agreement
    assert "passed" in agreement
    said = " ".join(err.split())
    assert "onnxruntime int8 is beyond that: max rel " in said
    assert "onnxruntime int8 passes on market1501 market, and not on golden crops" in said


@pytest.mark.parametrize("times", [0.0, np.nan])
def test_int8_that_is_no_number_is_not_measured_and_the_others_are(
    run, tiny_bundle, market, monkeypatch, tmp_path, times
):
    bundle = shutil.copytree(tiny_bundle, tmp_path / "tiny.reid")
    monkeypatch.setitem(verify.TOLERANCES, "int8", verify.Tolerance(10.0, -1.0))
    assert run("quantize", bundle, "--calibration", market, "--images", 8)[0] == 0
    embed = OnnxRuntimeEmbedder.embed

    def ruined(self, crops):
        return embed(self, crops) * np.float32(times if self.spec.precision == "int8" else 1)

    monkeypatch.setattr(OnnxRuntimeEmbedder, "embed", ruined)
    command = ("verify", bundle, "--runtime", "onnxruntime", "--data", market, "--max-map-drop", 100)
    status, out, err = run(*command, "--precision", "int8", "--precision", "fp32")
    assert status == 1
    agreement = out.partition("beside onnxruntime float32")[2]
    assert "onnxruntime float32" in agreement
    assert "int8" not in agreement
    assert "onnxruntime int8 is beyond that" in err


def test_where_no_engine_passes_nothing_is_measured(run, tiny_bundle, market, monkeypatch):
    monkeypatch.setitem(verify.TOLERANCES, "float32", verify.Tolerance(0.0, 1.0))
    status, out, err = run("verify", tiny_bundle, "--runtime", "pytorch", "--data", market)
    assert status == 1
    assert "embedding" not in err
    assert "no engine passes: nothing was measured on market1501 market" in out
    assert "beside" not in out


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["--format", "folder"], "--format would change nothing without --data"),
        (["--data", "nowhere"], "nowhere"),
        (["--precision", "fp8"], "Unknown precision 'fp8'"),
    ],
)
def test_what_cannot_be_is_refused(run, tiny_bundle, given, text):
    status, _, err = run("verify", tiny_bundle, *given)
    assert status == 2
    assert text in err
