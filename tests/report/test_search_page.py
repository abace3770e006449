import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from reidkit.errors import OutputError
from reidkit.index import NO_NEIGHBOR, Neighbors
from reidkit.report.results import Picture, QueryScore
from reidkit.report.search_page import write_search_page


@pytest.fixture
def write(tmp_path, read_page):
    def written(results, **options):
        out = tmp_path / "page.html"
        write_search_page(out, results, **{"title": "A search", **options})
        text = out.read_text(encoding="utf-8")
        return text, read_page(text)

    return written


def test_frames_say_what_is_right(write, results):
    _, page = write(results)
    hits = [re.sub("^hit ", "", attrs["class"]) for attrs in page.with_class("hit")]
    # The second query is the harder one and comes first; the third picture of each has no label.
    assert hits == ["wrong", "right", "unknown", "right", "wrong", "unknown"]
    alts = [attrs["aria-label"] for attrs in page.with_class("picture")]
    assert alts[0] == "Query query-b.jpg, id 2, camera 1"
    assert alts[1] == "Rank 1, another identity, distance 0.300, one.jpg, id 1, camera 2"
    assert alts[3] == "Rank 3, not labelled, distance 0.400, who.jpg"
    assert all(attrs["role"] == "img" and attrs["title"] for attrs in page.with_class("picture"))
    assert "first match at rank 2" in page.text
    assert "first hit is right" in page.text


def test_every_picture_is_inside_and_only_once(write, results):
    text, page = write(results)
    assert len(re.findall("data:image/jpeg;base64,", text)) == 5  # two queries, three of the gallery
    assert len(page.with_class("picture")) == 8


def test_nothing_is_fetched_and_nothing_runs(write, results):
    text, page = write(results, facts={"Model": "resnet50"})
    assert not re.search(r"https?:|//|@import|<script|<link|<iframe", re.sub(r"base64,[\w+/=]+", "", text))
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on") or name == "src"]
    assert {url[:5] for url in re.findall(r"url\((.*?)\)", text)} == {"data:"}


def test_what_is_said_at_the_top_is_as_wide_as_its_words(write, results):
    """Columns of one width once broke "onnxruntime" in two."""
    style = write(results, facts={"engine": "onnxruntime"})[0]
    assert re.search(r"\.headline \{ display: flex; flex-wrap: wrap;", style)
    assert re.search(r"\.headline div \{ flex: 1 1 auto; min-width: [^;]*; max-width: min\(300px, 100%\);", style)
    assert not re.search(r"\.headline \{[^}]*grid-template-columns", style)


def test_hostile_names_and_labels_are_text(write, results, picture):
    name = "<img src=x onerror=1>.jpg"
    hostile = Picture(picture(name), "\"'><b>&", "</style></title>\u202e\n")
    results = replace(results, gallery=[hostile, *results.gallery[1:]])
    text, page = write(results, title="</title><script>1</script>", facts={"<i>": "{{ 1 }}</dd>"})
    assert "&lt;img src=x onerror=1&gt;.jpg" in text
    assert not {tag for tag, _ in page.elements} & {"img", "script"}
    shown = [attrs["title"] for attrs in page.with_class("picture") if "onerror" in attrs["title"]]
    assert (
        shown[0]
        == f"Rank 1, another identity, distance 0.100, {name}, id \"'><b>&, camera </style></title>\ufffd\ufffd"
    )
    assert "</title><script>1</script>" in page.text
    assert "{{ 1 }}</dd>" in page.text


def test_a_picture_that_cannot_be_read_is_a_gap(write, results, tmp_path, caplog):
    results.gallery[0].path.write_bytes(b"no picture")
    (tmp_path / "query-a.jpg").unlink()
    _, page = write(results)
    gaps = [attrs["aria-label"] for attrs in page.with_class("gap")]
    assert gaps == [
        "Rank 1, another identity, distance 0.300, one.jpg, id 1, camera 2, unreadable",
        "Query query-a.jpg, id 1, camera 1, unreadable",
        "Rank 1, same identity, distance 0.100, one.jpg, id 1, camera 2, unreadable",
    ]
    assert "2 pictures could not be read" in page.text
    assert "one.jpg is not a picture" in caplog.text


def test_scores_and_facts_are_told(write, results):
    results = replace(results, scores=[QueryScore(0.25, 4), None])
    _, page = write(results, facts={"mAP": "82.2 %"})
    assert "AP 25.0%" in page.text
    assert "first match at rank 4" in page.text
    assert "No match in the gallery" in page.text
    assert "mAP 82.2 %" in page.text
    bins = [attrs["title"] for _, attrs in page.elements if "queries with" in (attrs.get("title") or "")]
    assert (len(bins), bins[2]) == (10, "1 queries with 20 to 30 %")


def test_the_page_says_how_many_of_how_many(write, results):
    _, page = write(results, max_queries=1)
    assert "1 of 2 queries" in page.text
    assert len(page.with_class("query")) == 1


def test_unlabelled_pictures_are_neither_right_nor_wrong(write, results):
    plain = replace(
        results, queries=[Picture(q.path) for q in results.queries], gallery=[Picture(g.path) for g in results.gallery]
    )
    _, page = write(plain)
    assert {attrs["class"] for attrs in page.with_class("hit")} == {"hit unknown"}
    assert not page.with_class("filter")
    assert "hardest" not in page.text


def test_a_query_without_neighbors_says_so(write, results):
    nothing = Neighbors(np.full((2, 1), NO_NEIGHBOR), np.full((2, 1), np.inf, np.float32))
    _, page = write(replace(results, neighbors=nothing))
    assert page.text.count("Nothing in the gallery may be shown for this query.") == 2


def test_the_same_search_gives_the_same_bytes(write, results):
    assert write(results)[0] == write(results)[0]


def test_a_large_picture_becomes_a_thumbnail(write, results, picture):
    rng = np.random.default_rng(0)
    noise = picture("one.jpg", size=(400, 800))
    Image.fromarray(rng.integers(0, 255, (800, 400, 3), dtype=np.uint8)).save(noise, format="PNG")
    text, _ = write(results)
    assert len(text) < 100_000


def test_a_place_that_cannot_be_written_to(results, tmp_path):
    (tmp_path / "page.html").mkdir()
    with pytest.raises(OutputError, match=r"Cannot write .*page\.html"):
        write_search_page(tmp_path / "page.html", results, title="A search")
