"""`reid compare` on a tiny model against itself and against one with other weights."""

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from reidkit.bundle import Golden, open_bundle, write_bundle


@pytest.fixture(scope="session")
def other_bundle(tiny_bundle, tmp_path_factory):
    """The tiny model with its first convolution drawn anew."""
    opened = open_bundle(tiny_bundle)
    model = onnx.load_from_string((tiny_bundle / "model.onnx").read_bytes())
    weight = next(item for item in model.graph.initializer if len(item.dims) == 4 and item.dims[1] == 3)
    drawn = np.random.default_rng(0).normal(size=tuple(weight.dims)).astype(np.float32)
    weight.CopyFrom(numpy_helper.from_array(drawn, weight.name))
    golden = opened.golden()
    path = tmp_path_factory.mktemp("bundles") / "other.reid"
    manifest = replace(opened.manifest, name="other", architecture=None)
    write_bundle(
        path, manifest, model=model.SerializeToString(), golden=Golden(golden.crops, golden.embeddings), weights=None
    )
    return path


def test_two_models(run, tiny_bundle, other_bundle, market, tmp_path):
    page, values = tmp_path / "c.html", tmp_path / "c.json"
    status, out, err = run(
        "compare", tiny_bundle, other_bundle, "--data", market, "--html", page, "--json", values, "--top", "3"
    )
    assert status == 0, err
    assert "on these 6 queries: mAP" in out
    found = json.loads(values.read_text())
    assert [change["measure"] for change in found["measures"]] == ["mAP", "rank-1", "mINP"]
    assert found["measures"][0]["a"] == pytest.approx(found["a"]["mAP"])
    assert found["measures"][0]["difference"] == pytest.approx(found["b"]["mAP"] - found["a"]["mAP"])
    assert found["verdict"] in out.replace("\n", " ")
    assert len(found["queries"]) == 6
    text = page.read_text()
    assert "tiny" in text
    assert "other" in text
    assert "<script" not in text


def test_two_engines_of_one_model(run, tiny_bundle, market):
    status, out, _ = run(
        "compare", tiny_bundle, tiny_bundle, "--data", market, "--runtime", "onnxruntime", "--runtime", "pytorch"
    )
    assert status == 0
    assert "tiny, onnxruntime and tiny, pytorch do not differ beyond chance on these 6 queries" in out


def test_a_page_that_cannot_be_written_costs_no_embedding(run, tiny_bundle, market, tmp_path, monkeypatch):
    monkeypatch.setattr("reidkit.cli.measuring.embed_split", lambda *_, **__: pytest.fail("embedded"))
    status, _, err = run("compare", tiny_bundle, tiny_bundle, "--data", market, "--html", tmp_path)
    assert status == 2
    assert f"Cannot write {tmp_path}" in err


def test_three_engines_are_too_many(run, tiny_bundle, market):
    engines = [part for _ in range(3) for part in ("--runtime", "onnxruntime")]
    status, _, err = run("compare", tiny_bundle, tiny_bundle, "--data", market, *engines)
    assert status == 2
    assert "got: 3 times --runtime" in err


def test_an_unreadable_picture_stops_it(run, tiny_bundle, market, tmp_path):
    copy = shutil.copytree(market, tmp_path / "market")
    (copy / "query" / "0004_c1s1_000000_00.jpg").write_bytes(b"no picture")
    status, _, err = run("compare", tiny_bundle, tiny_bundle, "--data", copy)
    assert status == 2
    assert "0004_c1s1_000000_00.jpg" in err
