"""`reid evaluate` end to end on a tiny model and tiny pictures."""

import json
import shutil

import numpy as np
import pytest

from reidkit.bundle import open_bundle
from reidkit.runtime.onnxruntime import OnnxRuntimeEmbedder


def test_evaluate(run, tiny_bundle, market, tmp_path):
    copy = shutil.copytree(tiny_bundle, tmp_path / "copy.reid")
    status, out, err = run("evaluate", copy, "--data", market, "--json", tmp_path / "a.json", "--record")
    assert status == 0
    assert "embedding" in err  # a bar each
    assert "ranking" in err
    assert "6 of 7 queries are valid; 1 without a match from another camera. Gallery: 7 crops" in out
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["queries"] == {"total": 7, "valid": 6}
    assert set(report["rank"]) == {"1", "5", "10"}
    assert report["rank"]["10"] == 1.0
    assert 0 < report["mINP"] <= report["mAP"] <= 1
    (recorded,) = open_bundle(copy).manifest.accuracy
    assert recorded.mAP == report["mAP"]
    assert (recorded.dataset, recorded.metric, recorded.precision) == ("market1501 market", "cosine", "float32")
    assert (recorded.runtime, recorded.queries, recorded.gallery) == ("onnxruntime", 6, 7)
    assert recorded.device
    assert "rank-1" in run("info", copy)[1]


def test_flip_is_recorded_beside_the_plain_measurement(run, tiny_bundle, market, tmp_path, monkeypatch):
    embedded = []
    embed = OnnxRuntimeEmbedder.embed
    monkeypatch.setattr(OnnxRuntimeEmbedder, "embed", lambda self, crops: embedded.append(crops) or embed(self, crops))
    copy = shutil.copytree(tiny_bundle, tmp_path / "copy.reid")
    for options in ([], ["--tta", "flip"], ["--tta", "flip", "--json", tmp_path / "a.json"]):
        status, out, _ = run("evaluate", copy, "--data", market, "--record", *options)
        assert status == 0
        assert ("flip" if options else "none") in out
    plain, flipped = open_bundle(copy).manifest.accuracy
    assert (plain.tta, flipped.tta) == ("none", "flip")
    report = json.loads((tmp_path / "a.json").read_text())
    assert (report["tta"], report["mAP"]) == ("flip", flipped.mAP)
    queries, gallery, again, mirrored = embedded[:4]
    assert (len(embedded), len(queries), len(gallery)) == (2 + 4 + 4, 7, 7)
    np.testing.assert_array_equal(again, queries)
    np.testing.assert_array_equal(mirrored, queries[:, :, ::-1])


def test_an_unknown_augmentation(run, tiny_bundle, market):
    status, _, err = run("evaluate", tiny_bundle, "--data", market, "--tta", "flop")
    assert status == 2
    assert "'flop' is not one of 'none', 'flip'" in err


def test_evaluate_names_an_unreadable_picture(run, tiny_bundle, market, tmp_path):
    copy = shutil.copytree(market, tmp_path / "market")
    broken = copy / "query" / "0004_c1s1_000000_00.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    status, _, err = run("evaluate", tiny_bundle, "--data", copy)
    assert status == 2
    assert f"error: {broken} is truncated or damaged" in err
    status, out, err = run("evaluate", tiny_bundle, "--data", copy, "--skip-unreadable")
    assert status == 0
    assert "5 of 7 queries are valid; 1 without a match from another camera, 1 lost to unreadable pictures" in out
    assert "Gallery: 7 crops, 0 distractors, 0 unreadable;" in out
    assert "1 pictures cannot be read and were left out" in err
    assert str(broken) in err


def test_a_part_of_a_data_set_is_not_recorded(run, tiny_bundle, market, tmp_path):
    bundle = shutil.copytree(tiny_bundle, tmp_path / "copy.reid")
    data = shutil.copytree(market, tmp_path / "market")
    for name in ("0005_c1s1_000001_00.jpg", "0006_c2s1_000001_00.jpg"):
        (data / "bounding_box_test" / name).write_bytes(b"no picture")
    report = tmp_path / "a.json"
    status, out, err = run("evaluate", bundle, "--data", data, "--skip-unreadable", "--record", "--json", report)
    assert status == 2
    # Query 0005 of camera 2 and query 0006 of camera 1 had their only match there.
    assert "4 of 7 queries are valid; 1 without a match from another camera, 2 lost to unreadable pictures" in out
    assert "Gallery: 7 crops, 0 distractors, 2 unreadable;" in out
    assert "error: The accuracy is not recorded" in err
    assert "got: 0 query and 2 gallery pictures unreadable" in err
    assert "leave --record out" in err
    assert open_bundle(bundle).manifest.accuracy == ()
    values = json.loads(report.read_text())
    assert values["unreadable"] == {"query": 0, "gallery": 2}
    assert values["queries"] == {"total": 7, "valid": 4}


def test_a_report_that_cannot_be_written_costs_no_embedding(run, tiny_bundle, market, tmp_path, monkeypatch):
    monkeypatch.setattr("reidkit.cli.evaluate.embed_split", lambda *_, **__: pytest.fail("embedded"))
    status, _, err = run("evaluate", tiny_bundle, "--data", market, "--json", tmp_path)
    assert status == 2
    assert f"Cannot write {tmp_path}" in err


def test_nothing_is_written_where_nothing_can_be_measured(run, tiny_bundle, market, tmp_path):
    copy = shutil.copytree(market, tmp_path / "market")
    for path in (copy / "query").glob("*_c2*"):
        path.unlink()
    for path in (copy / "bounding_box_test").glob("*_c2*"):
        path.unlink()
    status, out, err = run("evaluate", tiny_bundle, "--data", copy, "--json", tmp_path / "a.json")
    assert (status, out) == (2, "")
    assert "No query has a match in the gallery" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["market"]


def test_the_folder_that_one_stands_in_has_a_name(run, tiny_bundle, market, monkeypatch):
    monkeypatch.chdir(market)
    assert "market1501 market" in run("evaluate", tiny_bundle, "--data", ".")[1]


def test_evaluate_refuses_what_is_no_data_set(run, tiny_bundle, tmp_path):
    status, _, err = run("evaluate", tiny_bundle, "--data", tmp_path)
    assert status == 2
    assert str(tmp_path) in err
    assert "bounding_box_train" in err  # what a data set looks like
