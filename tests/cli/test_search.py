"""`reid search` end to end on a tiny model and tiny pictures."""

import json
import re
import shutil

import pytest
from PIL import Image


def is_png(path):
    with Image.open(path) as image:
        image.load()
        return image.format == "PNG"


def test_search_with_labels(run, tiny_bundle, market, tmp_path):
    page = tmp_path / "s.html"
    folders = ("--query", market / "query", "--gallery", market / "bounding_box_test")
    assert run("search", tiny_bundle, *folders, "--top", 3, "--out", page)[0] == 0
    html = page.read_text()
    assert "0004_c1s1_000000_00.jpg" in html
    assert "mAP" in html
    assert is_png(tmp_path / "s.png")
    again = tmp_path / "again.html"
    assert run("search", tiny_bundle, "--data", market, "--top", 3, "--out", again)[0] == 0
    assert "mAP" in again.read_text()


def test_every_command_measures_by_one_protocol(run, tiny_bundle, market, tmp_path):
    copy = shutil.copytree(market, tmp_path / "market")
    gallery = copy / "bounding_box_test"
    for i, path in enumerate(sorted((copy / "query").iterdir())):
        # The nearest of all for every query: junk, a crop of a wrong identity that is the query's own file ...
        shutil.copy(path, gallery / f"-1_c2s1_{i:06d}_00.jpg")
        (gallery / f"0099_c2s1_{i:06d}_00.jpg").symlink_to(path)
    # ... and, once, a distractor: only this one counts.
    shutil.copy(copy / "query" / "0004_c1s1_000000_00.jpg", gallery / "0000_c2s1_000000_00.jpg")
    assert run("evaluate", tiny_bundle, "--data", copy, "--json", tmp_path / "a.json")[0] == 0
    (report,) = json.loads((tmp_path / "a.json").read_text())
    assert (report["junk"], report["gallery"]["distractors"]) == (7, 1)
    assert 0 < report["mAP"] < 1
    sources = {"data": ["--data", copy], "folders": ["--query", copy / "query", "--gallery", gallery]}
    pages, said = {}, {}
    for name, source in sources.items():
        page = tmp_path / f"{name}.html"
        status, said[name], err = run("search", tiny_bundle, *source, "--out", page)
        assert status == 0, err
        pages[name] = re.findall(r"\d+\.\d%", page.read_text())
        assert "searching" in err  # a bar, besides those of embedding and drawing
    assert "7 of 22 pictures" in said["folders"]
    assert f"{report['mAP']:.1%}" in pages["data"]
    assert f"{report['mINP']:.1%}" in pages["data"]
    assert pages["data"] == pages["folders"]


def test_one_odd_name_and_labels_are_gone_not_in_silence(run, tiny_bundle, market, tmp_path):
    copy = shutil.copytree(market / "query", tmp_path / "query")
    (copy / "0004_c1s1_000000_00.jpg").rename(copy / "holiday.jpg")
    folders = ("--query", copy, "--gallery", market / "bounding_box_test")
    status, _, err = run("search", tiny_bundle, *folders, "--out", tmp_path / "s.html")
    assert status == 0
    assert "1 of 7 file names" in err
    assert "(the first: 'holiday.jpg')" in err
    assert "mAP" not in (tmp_path / "s.html").read_text()


def test_a_query_that_is_nobody_is_said_to_keep_the_score_away(run, tiny_bundle, market, tmp_path):
    copy = shutil.copytree(market / "query", tmp_path / "query")
    shutil.copy(copy / "0004_c1s1_000000_00.jpg", copy / "0000_c1s1_000000_00.jpg")
    folders = ("--query", copy, "--gallery", market / "bounding_box_test")
    status, _, err = run("search", tiny_bundle, *folders, "--out", tmp_path / "s.html")
    assert status == 0
    assert "1 of 8 queries are distractors" in err


def test_search_without_labels(run, tiny_bundle, market, tmp_path):
    gallery = tmp_path / "gallery"
    gallery.mkdir()
    for i, path in enumerate(sorted((market / "bounding_box_test").iterdir())):
        shutil.copy(path, gallery / f"picture {i}.jpg")
    (gallery / "broken.jpg").write_bytes(b"no picture")
    page = tmp_path / "s.html"
    status, _, err = run(
        "search", tiny_bundle, "--query", gallery / "picture 0.jpg", "--gallery", gallery, "--out", page
    )
    assert status == 0
    assert "1 pictures cannot be read and were left out" in err
    assert "broken.jpg is not a picture" in err
    assert "mAP" not in page.read_text()


@pytest.mark.parametrize(
    ("query", "gallery", "message"),
    [
        ("query", "empty", "empty holds no pictures"),
        ("empty", "query", "empty holds no pictures"),
        ("query", "nowhere", "nowhere cannot be listed"),
    ],
)
def test_search_bad_input(run, tiny_bundle, market, tmp_path, query, gallery, message):
    (tmp_path / "empty").mkdir()
    folders = {"query": market / "query", "empty": tmp_path / "empty", "nowhere": tmp_path / "nowhere"}
    page = tmp_path / "s.html"
    status, _, err = run("search", tiny_bundle, "--query", folders[query], "--gallery", folders[gallery], "--out", page)
    assert status == 2
    assert message in err
    assert not page.exists()


def test_search_needs_both_or_data(run, tiny_bundle, market, tmp_path):
    _, _, err = run("search", tiny_bundle, "--query", market, "--out", tmp_path / "s.html")
    assert "expected: --query and --gallery, or --data alone" in err


def test_search_by_reranked_distances(run, tiny_bundle, market, tmp_path, embedded):
    plain, reranked = tmp_path / "plain.html", tmp_path / "reranked.html"
    assert run("search", tiny_bundle, "--data", market, "--out", plain)[0] == 0
    assert embedded == [7, 7]
    embedded.clear()  # what was embedded is kept
    # Fourteen pictures in all are too few for the usual 20 neighbours.
    status, _, err = run("search", tiny_bundle, "--data", market, "--rerank", "--out", reranked)
    assert (status, embedded) == (2, [])
    assert "--k1 asks for more neighbours than a crop of market1501 market has\n  got: --k1 20, and 7 query" in err
    assert not reranked.exists()
    assert run("search", tiny_bundle, "--data", market, "--rerank", "--k1", "5", "--k2", "2", "--out", reranked)[0] == 0
    distances = [re.findall(r"\b\d\.\d{3}\b", path.read_text()) for path in (plain, reranked)]
    assert distances[0] != distances[1]
    assert embedded == []
    assert "k-reciprocal 5/2/0.3" in reranked.read_text()
    assert "k-reciprocal" not in plain.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variant", "small"], "--variant would change nothing without --data"),
        (["--k1", "3"], "--k1 would change nothing without --rerank"),
        (["--out", "FOLDER"], "Cannot write "),
    ],
)
def test_what_cannot_be_costs_no_embedding(run, tiny_bundle, market, tmp_path, embedded, arguments, message):
    folder = tmp_path / "taken.html"
    folder.mkdir()
    folders = ("--query", market / "query", "--gallery", market / "bounding_box_test")
    given = [folder if argument == "FOLDER" else argument for argument in arguments]
    status, _, err = run("search", tiny_bundle, *folders, "--out", tmp_path / "s.html", *given)
    assert (status, embedded) == (2, [])
    assert f"error: {message}" in err


def test_the_page_counts_unreadable_pictures(run, tiny_bundle, market, tmp_path):
    copy = shutil.copytree(market, tmp_path / "market")
    (copy / "query" / "0004_c1s1_000000_00.jpg").write_bytes(b"no picture")
    page = tmp_path / "s.html"
    assert run("search", tiny_bundle, "--data", copy, "--metric", "euclidean", "--out", page)[0] == 0
    text = page.read_text()
    assert re.search(r"unreadable pictures, left out</\w+>\s*<\w+[^>]*>1<", text)
    assert "euclidean" in text
