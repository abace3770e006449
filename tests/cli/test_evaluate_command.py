"""`reid evaluate` end to end on a tiny model and tiny pictures."""

import csv
import json
import os
import shutil

import numpy as np
import pytest

from reidkit.bundle import open_bundle
from reidkit.cli.options import parse_memory
from reidkit.runtime.onnxruntime import OnnxRuntimeEmbedder


def test_evaluate(run, tiny_bundle, market, tmp_path):
    copy = shutil.copytree(tiny_bundle, tmp_path / "copy.reid")
    status, out, err = run("evaluate", copy, "--data", market, "--json", tmp_path / "a.json", "--record")
    assert status == 0
    assert "embedding" in err  # a bar each
    assert "ranking" in err
    assert "6 of 7 queries are valid; 1 without a match from another camera. Gallery: 7 crops" in out
    (report,) = json.loads((tmp_path / "a.json").read_text())
    counts = report["queries"]
    assert (counts["total"], counts["valid"], counts["unmatched"]) == (7, 6, 1)
    assert counts["invalid"] == ["0009_c1s1_000000_00.jpg"]
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
        shutil.rmtree(os.environ["REIDKIT_CACHE"])
    plain, flipped = open_bundle(copy).manifest.accuracy
    assert (plain.tta, flipped.tta) == ("none", "flip")
    (report,) = json.loads((tmp_path / "a.json").read_text())
    assert (report["tta"], report["mAP"]) == ("flip", flipped.mAP)
    queries, gallery, mirrored, again = embedded[:4]
    assert (len(embedded), len(queries), len(gallery)) == (2 + 4 + 4, 7, 7)
    np.testing.assert_array_equal(again, queries)
    np.testing.assert_array_equal(mirrored, queries[:, :, ::-1])


def test_an_unknown_augmentation(run, tiny_bundle, market):
    status, _, err = run("evaluate", tiny_bundle, "--data", market, "--tta", "flop")
    assert status == 2
    assert "'flop' is not one of 'none', 'flip'" in err


@pytest.fixture
def embedded(monkeypatch):
    """Numbers of crops that the engine was given, call by call."""
    counts = []
    embed = OnnxRuntimeEmbedder.embed
    monkeypatch.setattr(
        OnnxRuntimeEmbedder, "embed", lambda self, crops: counts.append(len(crops)) or embed(self, crops)
    )
    return counts


def test_a_second_metric_costs_no_second_extraction(run, tiny_bundle, market, embedded):
    first = run("evaluate", tiny_bundle, "--data", market)
    assert embedded == [7, 7]
    assert run("evaluate", tiny_bundle, "--data", market)[1] == first[1]
    assert run("evaluate", tiny_bundle, "--data", market, "--metric", "euclidean", "--rerank", "--k1", "5")[0] == 0
    assert embedded == [7, 7]
    assert run("evaluate", tiny_bundle, "--data", market, "--no-cache")[1] == first[1]
    assert embedded == [7, 7] * 2
    assert run("evaluate", tiny_bundle, "--data", market, "--tta", "flip")[0] == 0
    assert embedded == [7, 7] * 2 + [7, 7] * 2


def test_recording_a_measurement_keeps_what_was_embedded(run, tiny_bundle, market, tmp_path, embedded):
    copy = shutil.copytree(tiny_bundle, tmp_path / "copy.reid")
    for _ in range(2):
        assert run("evaluate", copy, "--data", market, "--record")[0] == 0
    assert embedded == [7, 7]


def test_every_model_on_every_data_set_with_every_engine(run, tiny_bundle, market, tmp_path):
    other, again = tmp_path / "other.reid", tmp_path / "again"
    shutil.copytree(tiny_bundle, other)
    shutil.copytree(market, again)
    for path in (again / "query").glob("0004_*"):
        path.unlink()
    files = {suffix: tmp_path / f"all.{suffix}" for suffix in ("json", "csv", "html")}
    status, out, _ = run(
        *("evaluate", tiny_bundle, other, "--data", market, "--data", again),
        *("--runtime", "onnxruntime", "--runtime", "pytorch"),
        *(part for suffix, path in files.items() for part in (f"--{suffix}", path)),
    )
    assert status == 0
    reports = json.loads(files["json"].read_text())
    assert len(reports) == 8
    # Both bundles are called tiny: their places tell them apart.
    assert {report["model"] for report in reports} == {str(tiny_bundle), str(other)}
    assert {report["dataset"] for report in reports} == {"market1501 market", "market1501 again"}
    assert {report["runtime"] for report in reports} == {"onnxruntime", "pytorch"}
    assert "every model on every data set" in out
    assert "6 of 7 queries are valid" in out
    assert "4 of 5 queries are valid" in out
    with files["csv"].open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["mAP"]) for row in rows] == [report["mAP"] for report in reports]
    page = files["html"].read_text()
    assert "<svg" in page
    assert "<script" not in page


def test_refined_distances_are_recorded_beside_the_plain_ones(run, tiny_bundle, market, tmp_path):
    copy = shutil.copytree(tiny_bundle, tmp_path / "copy.reid")
    for options in (
        [],
        ["--rerank", "--k1", "3", "--k2", "2"],
        ["--dba", "2", "--query-expansion", "2", "--alpha", "3"],
    ):
        status, out, err = run("evaluate", copy, "--data", market, "--record", *options)
        assert status == 0, err
    assert "Distances refined:" in out
    plain, reranked, expanded = open_bundle(copy).manifest.accuracy
    assert (plain.refinement, reranked.refinement) == ("none", "k-reciprocal 3/2/0.3")
    assert "DBA 2" in expanded.refinement
    assert "3/2/0.3" in run("info", copy)[1]


def test_protocols_and_ranks(run, tiny_bundle, market, tmp_path):
    json_file = tmp_path / "a.json"
    options = ("--protocol", "camera-less", "--rank", "1", "--rank", "3", "--fpr", "0.5", "--json", json_file)
    status, out, _ = run("evaluate", tiny_bundle, "--data", market, *options)
    assert status == 0
    assert "7 of 7 queries are valid; 0 without a match. " in out  # the lonely one has a match in its own camera
    (report,) = json.loads(json_file.read_text())
    assert (report["protocol"], list(report["rank"]), list(report["tpr"])) == ("camera-less", ["1", "3"], ["0.5"])
    status, _, err = run("evaluate", tiny_bundle, "--data", market, "--protocol", "market1502")
    assert status == 2
    assert "Unknown protocol 'market1502'" in err
    assert "did you mean 'market1501'?" in err


def test_saved_embeddings_give_what_the_model_gives(run, tiny_bundle, market, tmp_path):
    for subset in ("query", "gallery"):
        out = tmp_path / f"{subset}.npz"
        assert run("embed", tiny_bundle, "--data", market, "--subset", subset, "--out", out)[0] == 0
    direct, saved = tmp_path / "direct.json", tmp_path / "saved.json"
    assert run("evaluate", tiny_bundle, "--data", market, "--json", direct)[0] == 0
    files = (tmp_path / "query.npz", tmp_path / "gallery.npz")
    status, out, _ = run("evaluate", "--embeddings", *files, "--json", saved)
    assert status == 0
    assert "6 of 7 queries are valid" in out
    (one,), (other,) = json.loads(direct.read_text()), json.loads(saved.read_text())
    assert (one["mAP"], one["rank"], one["interval"]) == (other["mAP"], other["rank"], other["interval"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Say what to measure"),
        (["BUNDLE"], "Say what to measure"),
        (["--embeddings", "q.npz", "g.npz", "--tta", "flip"], "Saved embeddings need no tta"),
        (["BUNDLE", "--embeddings", "q.npz", "g.npz"], "Saved embeddings need no bundles"),
        (["BUNDLE", "--data", "MARKET", "--memory", "much"], "Cannot read --memory\n  got: much"),
        (["BUNDLE", "--data", "MARKET", "--memory", "10B"], "The limit of memory is too small"),
        (["BUNDLE", "--data", "MARKET", "--rerank", "--k1", "14"], "k1"),
        (["BUNDLE", "--data", "MARKET", "--query-expansion", "8"], "7"),
    ],
)
def test_options_that_cannot_be(run, tiny_bundle, market, arguments, message):
    places = {"BUNDLE": tiny_bundle, "MARKET": market}
    status, _, err = run("evaluate", *(places.get(argument, argument) for argument in arguments))
    assert status == 2
    assert message in err


@pytest.mark.parametrize(("text", "size"), [("1GiB", 2**30), ("512 mib", 2**29), ("1.5kb", 1500), ("7b", 7)])
def test_memory_in_words(text, size):
    assert parse_memory(text) == size


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
    (values,) = json.loads(report.read_text())
    assert values["unreadable"] == {"query": 0, "gallery": 2}
    assert (values["queries"]["total"], values["queries"]["valid"]) == (7, 4)


def test_a_report_that_cannot_be_written_costs_no_embedding(run, tiny_bundle, market, tmp_path, monkeypatch):
    monkeypatch.setattr("reidkit.cli.measuring.embed_split", lambda *_, **__: pytest.fail("embedded"))
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
