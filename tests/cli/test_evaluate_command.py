"""`reid evaluate` end to end on a tiny model and tiny pictures."""

import csv
import json
import os
import shutil

import numpy as np
import pytest

from reidkit.atomic import output_file
from reidkit.bundle import open_bundle
from reidkit.cli.evaluate import record_measured
from reidkit.cli.measuring import Settings, dataset_names, measure
from reidkit.cli.options import parse_memory
from reidkit.data import load_split
from reidkit.errors import DataError, OutputError
from reidkit.runtime.onnxruntime import OnnxRuntimeEmbedder
from reidkit.types import Split


def test_evaluate(run, tiny_bundle, market, tmp_path):
    copy = shutil.copytree(tiny_bundle, tmp_path / "copy.reid")
    status, out, err = run("evaluate", copy, "--data", market, "--json", tmp_path / "a.json", "--record")
    assert status == 0
    assert "embedding" in err  # a bar each
    assert "ranking" in err
    assert "6 of 7 queries are valid; 1 without a match from another camera. Gallery: 7 crops" in out
    assert out.endswith(f"wrote {tmp_path / 'a.json'}\nwrote {copy / 'manifest.json'}\n")
    (report,) = json.loads((tmp_path / "a.json").read_text())
    counts = report["queries"]
    assert (counts["total"], counts["valid"], counts["unmatched"]) == (7, 6, 1)
    assert counts["unmatched_names"] == ["query/0009_c1s1_000000_00.jpg"]
    assert "--json and --html name the queries that were not measured." in out
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
    assert {report["model"] for report in reports} == {"tiny.reid", "other.reid"}
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


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_saved_embeddings_give_what_the_model_gives(run, tiny_bundle, market, tmp_path, suffix):
    files = [tmp_path / f"{subset}.{suffix}" for subset in ("query", "gallery")]
    for file in files:
        assert run("embed", tiny_bundle, "--data", market, "--subset", file.stem, "--out", file)[0] == 0
    direct, saved = tmp_path / "direct.json", tmp_path / "saved.json"
    assert run("evaluate", tiny_bundle, "--data", market, "--json", direct)[0] == 0
    status, out, _ = run("evaluate", "--embeddings", *files, "--json", saved)
    assert status == 0
    assert "6 of 7 queries are valid" in out
    (one,), (other,) = json.loads(direct.read_text()), json.loads(saved.read_text())
    assert (one["mAP"], one["rank"], one["interval"]) == (other["mAP"], other["rank"], other["interval"])


_MEASURED = ["BUNDLE", "--data", "MARKET"]
_SAVED = ["--embeddings", "q.npz", "g.npz"]
_WHAT = "Say what to measure\n  expected: BUNDLE and --data, one or more of each; or --embeddings QUERY GALLERY\n"
_CROPS = "7 query and 7 gallery crops\n  expected:"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], _WHAT),
        (["BUNDLE"], _WHAT),
        ([*_MEASURED, "--hint", "throughput"], "onnxruntime knows no hint\n  got: hint throughput\n"),
        (
            [*_MEASURED, "--memory", "much"],
            "Cannot read --memory\n  got: much\n  expected: a number and a unit, such as 1GiB or 512MiB\n",
        ),
        (
            [*_MEASURED, "--memory", "10B"],
            "--memory does not hold the distances of one query to the gallery of market1501 market\n"
            "  got: 10 bytes\n  expected: 28 at least, for 7 crops\n",
        ),
        (
            [*_MEASURED, "--memory", "100B"],
            "The ROC curve up to a false positive rate of 1e-2 does not fit the limit of memory\n  got: 100 bytes\n",
        ),
        (
            [*_MEASURED, "--rerank", "--k1", "14"],
            "--k1 asks for more neighbours than a crop of market1501 market has\n"
            f"  got: --k1 14, and {_CROPS} 13 at most\n",
        ),
        (
            [*_MEASURED, "--query-expansion", "8"],
            "--query-expansion asks for more neighbours than a crop of market1501 market has\n"
            f"  got: --query-expansion 8, and {_CROPS} 7 at most\n",
        ),
        (
            [*_MEASURED, "--dba", "7"],
            "--dba asks for more neighbours than a crop of market1501 market has\n"
            f"  got: --dba 7, and {_CROPS} 6 at most\n",
        ),
        ([*_MEASURED, "--k2", "3"], "--k2 would change nothing without --rerank\n  to do: leave out --k2\n"),
        (
            [*_MEASURED, "--k1", "3", "--lambda", "0"],
            "--k1, --lambda would change nothing without --rerank\n  to do: leave out --k1 and --lambda\n",
        ),
        ([*_MEASURED, "--protocol", "market15"], "Unknown protocol 'market15'\n"),
        (
            [*_MEASURED, "--fpr", "2"],
            "A false positive rate is a share of all wrong pairs\n  got: --fpr 2\n  expected: 0 to 1\n",
        ),
        ([*_MEASURED, "--fpr", "0.5", "--fpr", "-0.1"], "wrong pairs\n  got: --fpr -0.1\n  expected: 0 to 1\n"),
        ([*_MEASURED, "--fpr", "0.5", "--fpr", "nan"], "wrong pairs\n  got: --fpr nan\n  expected: 0 to 1\n"),
        (
            [*_MEASURED, "--variant", "labeled"],
            "None of the data sets comes in variants\n  got: --variant labeled for market1501 market\n"
            "  expected: --variant only with cuhk03 or vehicleid\n",
        ),
        (
            [*_MEASURED, "--json", "a.txt", "--csv", "./a.txt"],
            "--json and --csv name one file\n  got: a.txt\n  to do: give each a name of its own\n",
        ),
        *(
            (
                [*_SAVED, *given],
                f"{given[0]} would change nothing beside --embeddings: those were made already\n"
                f"  to do: leave out {given[0]}\n",
            )
            for given in (
                ["BUNDLE"],
                *(["--data", "MARKET"], ["--runtime", "onnxruntime"], ["--tta", "flip"], ["--device", "cuda"]),
                *(["--batch", "3"], ["--workers", "2"], ["--skip-unreadable"], ["--no-cache"], ["--record"]),
                *(["--threads-per-call", "1"], ["--hint", "latency"], ["--optimization", "all"]),
                *(["--format", "market1501"], ["--variant", "labeled"]),
            )
        ),
    ],
)
def test_options_that_cannot_be(run, tiny_bundle, market, tmp_path, monkeypatch, embedded, arguments, message):
    monkeypatch.chdir(tmp_path)
    places = {"BUNDLE": str(tiny_bundle), "MARKET": str(market)}
    status, out, err = run("evaluate", *(places.get(argument, argument) for argument in arguments))
    assert (status, out, embedded) == (2, "", [])
    assert message in err
    assert list(tmp_path.iterdir()) == []


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


def test_an_output_that_fails_costs_no_other(run, tiny_bundle, market, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OutputError("Cannot write the page", got="No space left on device")

    monkeypatch.setattr("reidkit.report.evaluation_page.write_evaluation_page", fail)
    bundle = shutil.copytree(tiny_bundle, tmp_path / "copy.reid")
    files = {suffix: tmp_path / f"all.{suffix}" for suffix in ("html", "json", "csv")}
    outputs = (part for suffix, path in files.items() for part in (f"--{suffix}", path))
    status, out, err = run("evaluate", bundle, "--data", market, "--record", *outputs)
    assert status == 2
    assert "error: Cannot write the page\n  got: No space left on device\n" in err
    assert "6 of 7 queries are valid" in out
    (report,) = json.loads(files["json"].read_text())
    with files["csv"].open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    (recorded,) = open_bundle(bundle).manifest.accuracy
    assert float(row["mAP"]) == report["mAP"] == recorded.mAP
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.csv", "all.json", "copy.reid"]


def test_a_manifest_that_cannot_be_written_costs_no_embedding(run, tiny_bundle, market, tmp_path, embedded):
    bundle = shutil.copytree(tiny_bundle, tmp_path / "copy.reid")
    other = shutil.copytree(tiny_bundle, tmp_path / "other.reid")
    real = output_file

    def refuse(path):
        if path == other / "manifest.json":
            raise OutputError(f"Cannot write {path}")
        return real(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reidkit.cli.outputs.output_file", refuse)
        status, _, err = run("evaluate", bundle, other, "--data", market, "--record")
    assert (status, embedded) == (2, [])
    assert f"Cannot write {other / 'manifest.json'}" in err


@pytest.fixture
def same_named(market, tmp_path):
    """Two data sets in folders of one name; the second has no picture of 0004 to ask with."""
    first, second = (shutil.copytree(market, tmp_path / part / "market") for part in ("s1", "s2"))
    for path in (second / "query").glob("0004_*"):
        path.unlink()
    return first, second


def test_every_measurement_is_recorded_in_its_own_place(run, tiny_bundle, other_bundle, same_named, tmp_path):
    bundles = [shutil.copytree(path, tmp_path / path.name) for path in (tiny_bundle, other_bundle)]
    first, second = same_named
    json_file = tmp_path / "a.json"
    # The same place twice, by another path, is one data set and one model.
    again = ("--data", tmp_path / "s1" / ".." / "s1")
    status, out, err = run(
        *("evaluate", *bundles, bundles[0].parent / ".." / tmp_path.name / bundles[0].name),
        *("--data", first, "--data", second, *again, "--record", "--json", json_file),
    )
    assert status == 0, err
    reports = json.loads(json_file.read_text())
    names = ["market1501 s1/market", "market1501 s2/market"]
    assert [(report["model"], report["dataset"]) for report in reports] == [
        (model, name) for name in names for model in ("tiny", "other")
    ]
    assert "market1501 s1/market, protocol market1501: 6 of 7 queries are valid" in out
    assert "market1501 s2/market, protocol market1501: 4 of 5 queries are valid" in out
    assert "every model on every data set" in out
    for bundle in bundles:
        recorded = {(a.dataset, a.mAP, a.queries) for a in open_bundle(bundle).manifest.accuracy}
        assert recorded == {
            (report["dataset"], report["mAP"], report["queries"]["valid"])
            for report in reports
            if report["model"] == bundle.stem
        }
        assert len(recorded) == 2


def test_two_measurements_of_one_place_are_not_recorded(tiny_bundle, market, tmp_path):
    bundle = open_bundle(shutil.copytree(tiny_bundle, tmp_path / "copy.reid"))
    report = measure(bundle, load_split(market), "onnxruntime", Settings(), model="tiny")
    with pytest.raises(DataError, match="has one place for two measurements"):
        record_measured([(bundle, report)] * 2)
    assert open_bundle(bundle.path).manifest.accuracy == ()


def test_the_end_of_a_path_tells_apart(tmp_path):
    roots = ["a/x/market", "b/x/market", "b/market", "b/duke", "market"]
    splits = [Split("market1501", tmp_path / root, variant="9" if "duke" in root else None) for root in roots]
    assert dataset_names(splits) == [
        *("market1501 a/x/market", "market1501 b/x/market", "market1501 b/market", "market1501 duke 9"),
        f"market1501 {tmp_path.name}/market",
    ]
    assert dataset_names([splits[0], splits[0]]) == ["market1501 market"] * 2


def test_a_drawn_gallery(run, tiny_bundle, market, vehicles, tmp_path):
    bundle = shutil.copytree(tiny_bundle, tmp_path / "copy.reid")
    json_file = tmp_path / "a.json"
    # The variant is that of the data set that has some.
    data = ("--data", vehicles, "--data", market, "--variant", "small")
    status, out, err = run("evaluate", bundle, *data, "--record", "--json", json_file)
    assert status == 0, err
    # Fourteen pictures of four vehicles: four stand to be found in each draw, and ten ask.
    assert "14 of 14 queries are valid, 10 in one of 10 draws; 0 without a match." in out
    assert "Gallery: 14 crops, 0 distractors, 4 in one draw;" in out
    report = json.loads(json_file.read_text())[0]
    spread = f"mAP {100 * report['spread']['mAP']:.2f}, rank-1 {100 * report['spread']['rank-1']:.2f}"
    on = f"tiny with onnxruntime on {report['dataset']}"
    assert f"Standard deviation over the 10 draws, in percent, {on}: {spread}." in out
    recorded = open_bundle(bundle).manifest.accuracy[0]
    assert (recorded.protocol, recorded.queries, recorded.gallery) == ("vehicleid", 10, 4)


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
