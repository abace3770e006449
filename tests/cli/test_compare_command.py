"""`reid compare` on a tiny model against itself and against one with other weights."""

import json
import shutil

import pytest

from reidkit.errors import OutputError


def test_two_models(run, tiny_bundle, other_bundle, market, tmp_path):
    page, values = tmp_path / "c.html", tmp_path / "c.json"
    status, out, err = run(
        "compare", tiny_bundle, other_bundle, "--data", market, "--html", page, "--json", values, "--top", "3"
    )
    assert status == 0, err
    assert "on these 6 queries: mAP" in out
    assert f"wrote {values}" in out
    assert out.endswith(f"wrote {page}\n")
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


def test_two_models_on_a_drawn_gallery(run, tiny_bundle, other_bundle, vehicles):
    status, out, err = run("compare", tiny_bundle, other_bundle, "--data", vehicles)
    assert status == 0, err
    assert "on these 14 queries: mAP" in out


def test_two_models_of_one_name(run, tiny_bundle, market, tmp_path):
    bundles = [shutil.copytree(tiny_bundle, tmp_path / part / "copy.reid") for part in ("x", "y")]
    json_file = tmp_path / "c.json"
    status, out, _ = run("compare", *bundles, "--data", market, "--json", json_file)
    assert status == 0
    assert "x/copy.reid and y/copy.reid do not differ beyond chance on these 6 queries" in out
    found = json.loads(json_file.read_text())
    assert (found["a"]["model"], found["b"]["model"]) == ("x/copy.reid", "y/copy.reid")


def test_a_model_against_itself_reranked(run, tiny_bundle, market, tmp_path):
    page = tmp_path / "c.html"
    options = ("--rerank", "--k1", "3", "--k2", "2", "--html", page)
    status, out, _ = run("compare", tiny_bundle, tiny_bundle, "--data", market, *options)
    assert status == 0
    assert "tiny (A) and tiny (B) do not differ beyond chance" in out
    assert "Both with refinement k-reciprocal 3/2/0.3." in out
    assert "k-reciprocal 3/2/0.3" in page.read_text()


def test_a_page_that_fails_costs_no_table(run, tiny_bundle, market, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OutputError("Cannot write the page")

    monkeypatch.setattr("reidkit.report.comparison_page.write_comparison_page", fail)
    files = ("--html", tmp_path / "c.html", "--json", tmp_path / "c.json")
    status, out, err = run("compare", tiny_bundle, tiny_bundle, "--data", market, *files)
    assert status == 2
    assert "error: Cannot write the page" in err
    assert "do not differ beyond chance" in out
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol", "market15"], "Unknown protocol 'market15'"),
        (["--memory", "10B"], "--memory does not hold the distances of one query"),
        (["--rerank"], "--k1 asks for more neighbours than a crop of market1501 market has\n  got: --k1 20"),
        (["--lambda", "0.5"], "--lambda would change nothing without --rerank"),
        (["--html", "c", "--json", "c"], "--html and --json name one file"),
    ],
)
def test_options_that_cannot_be_cost_no_embedding(run, tiny_bundle, market, embedded, arguments, message):
    status, _, err = run("compare", tiny_bundle, tiny_bundle, "--data", market, *arguments)
    assert (status, embedded) == (2, [])
    assert f"error: {message}" in err


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
