import re
from dataclasses import replace

import numpy as np
import pytest

from reidkit.errors import InputError, OutputError
from reidkit.evaluate import compare_reports
from reidkit.index import Neighbors
from reidkit.metrics.protocol import PROTOCOLS
from reidkit.report.comparison_page import write_comparison_page
from reidkit.report.results import SearchResults, pictures

# Where the six queries stand for A and for B; the match of each is at its own number.
A = (0.1, 1.1, 2.1, 3.1, 4.1, 4.4)  # loses query 5: AP 1/2
B = (3.4, 1.6, 2.1, 3.1, 4.1, 5.1)  # loses queries 0 (AP 1/6) and 1 (AP 1/2), and gains 5


@pytest.fixture
def both(report, picture, tmp_path):
    """The comparison of A and B, and what both found: the three nearest."""
    for i in range(6):
        picture(f"q{i}.png", (40 * i, 10, 10))
        picture(f"g{i}.png", (10, 40 * i, 10))

    def made(a=A, b=B, names=None, **how):
        reports = [report(places, root=tmp_path, names=names, **how) for places in (a, b)]
        found = []
        for places, one in zip((a, b), reports, strict=True):
            distances = np.abs(np.array(places, dtype=np.float32)[:, None] - np.arange(6, dtype=np.float32))
            nearest = np.argsort(distances, axis=1, kind="stable")[:, :3]
            gallery = [
                replace(crop, path=crop.path.with_name(crop.path.name.replace("q", "g", 1))) for crop in one.crops
            ]
            neighbors = Neighbors(nearest, np.take_along_axis(distances, nearest, axis=1))
            found.append(SearchResults(pictures(one.crops), pictures(gallery), neighbors))
        return compare_reports(*reports), tuple(found)

    return made


@pytest.fixture
def write(tmp_path, read_page):
    def written(comparison, results, **options):
        out = tmp_path / "page.html"
        write_comparison_page(out, comparison, results, **{"names": ("old", "new"), **options})
        text = out.read_text(encoding="utf-8")
        return text, read_page(text)

    return written


def shown(page):
    return [attrs["id"] for attrs in page.with_class("query")]


def words(page):
    return " ".join(page.text.split())


def test_verdict_and_measures(both, write):
    comparison, results = both()
    _, page = write(comparison, results)
    assert comparison.in_words("old", "new") in words(page)
    mean_ap = comparison.measures[0]
    low, high = mean_ap.paired.interval
    row = f"mAP 91.67 77.78 -13.89 {100 * low:+.2f} to {100 * high:+.2f} {mean_ap.paired.p_value:.2g}"
    assert row in words(page)
    assert "measure old new difference 95 % interval p" in words(page)
    assert "lost, gained, the same 2, 1, 3" in words(page)
    assert "old against new" in words(page)


@pytest.mark.parametrize(
    ("protocol", "said"),
    [
        ("market1501", ()),
        ("cuhk03-single-shot", ("The pictures and AP are of the whole gallery, rank-k of galleries that are drawn",)),
        ("vehicleid", ("The pictures are of the whole gallery; AP and all measures are of galleries that are drawn",)),
    ],
)
def test_what_the_pictures_are_of_is_said_where_galleries_are_drawn(both, write, protocol, said):
    _, page = write(*both(protocol=PROTOCOLS[protocol]))
    assert ("of the whole gallery" in words(page)) == bool(said)
    assert all(sentence in words(page) for sentence in said)


def test_lost_queries_come_first_then_gained_ones(both, write):
    _, page = write(*both())
    assert shown(page) == ["query-0", "query-1", "query-5"]
    text = words(page)
    assert text.index("Queries that new lost 2 of 2 shown") < text.index("Queries that new gained 1 of 1 shown")
    assert "q0.png AP 100.0% → 16.7% -83.3" in text
    assert "q5.png AP 50.0% → 100.0% +50.0" in text


def test_what_each_found_is_framed(both, write):
    _, page = write(*both())
    hits = [attrs["class"] for attrs in page.with_class("hit")][:6]
    assert hits == ["hit right", "hit wrong", "hit wrong", "hit wrong", "hit wrong", "hit wrong"]  # query 0, A then B
    alts = [attrs["aria-label"] for attrs in page.with_class("picture")]
    assert alts[0] == "Query q0.png, id 0, camera 0"
    assert alts[1] == "Rank 1, same identity, distance 0.100, g0.png, id 0, camera 0"
    assert alts[4] == "Rank 1, another identity, distance 0.400, g3.png, id 3, camera 0"


def test_a_picture_is_inside_once(both, write):
    text, page = write(*both())
    names = {re.search(r"\w\d\.png", attrs["title"])[0] for attrs in page.with_class("picture")}
    assert len(page.with_class("picture")) == 3 * (1 + 2 * 3)
    assert text.count("data:image/jpeg;base64,") == len(names) < 10


def test_the_limit_is_shared_and_what_is_left_goes_to_the_other(both, write):
    comparison, results = both()
    text = {limit: write(comparison, results, limit=limit) for limit in (1, 2, 3)}
    assert [shown(page) for _, page in text.values()] == [
        ["query-0"],
        ["query-0", "query-5"],
        ["query-0", "query-1", "query-5"],
    ]
    assert "1 of 2 shown" in words(text[2][1])
    with pytest.raises(InputError, match=r"queries to show must be at least 1\n  got: 0"):
        write(comparison, results, limit=0)


def test_nothing_changed(both, write):
    text, page = write(*both(A, A))
    assert shown(page) == []
    assert "No query fares better or worse with new than with old." in words(page)
    assert "base64" not in text


def test_a_picture_that_cannot_be_read_is_a_gap(both, write, tmp_path, caplog):
    comparison, results = both()
    (tmp_path / "q0.png").write_bytes(b"no picture")
    _, page = write(comparison, results)
    assert [attrs["aria-label"] for attrs in page.with_class("gap")] == ["Query q0.png, id 0, camera 0, unreadable"]
    assert "1 picture could not be read" in words(page)
    assert "q0.png is not a picture" in caplog.text


def test_hostile_names_are_text(both, write, picture):
    hostile = lambda side, i: f"{side}<img src=x onerror=1>{i}.png"  # noqa: E731
    for i in range(6):
        picture(hostile("q", i))
    names = ("</title><script>1</script>\u202e", "<b>{{ 1 }}")
    text, page = write(*both(names=hostile), names=names, facts={"<i>": "</dd>"}, title="</style><u>")
    assert not {tag for tag, _ in page.elements} & {"img", "script", "u"}
    assert "&lt;img src=x onerror=1&gt;" in text
    assert "</title><script>1</script>\ufffd" in page.text
    assert "<b>{{ 1 }}" in page.text
    assert "<i> </dd>" in words(page)
    assert "</style><u>" in page.text


def test_results_of_other_queries_are_refused(both, write):
    comparison, (a, b) = both()
    other = replace(b, queries=b.queries[::-1])
    with pytest.raises(InputError, match="What B found is not for the queries that were compared"):
        write(comparison, (a, other))


def test_the_same_comparison_gives_the_same_bytes(both, write):
    assert write(*both())[0] == write(*both())[0]


def test_a_place_that_cannot_be_written_to(both, tmp_path):
    (tmp_path / "page.html").mkdir()
    comparison, results = both()
    with pytest.raises(OutputError, match=r"Cannot write .*page\.html"):
        write_comparison_page(tmp_path / "page.html", comparison, results, names=("a", "b"))
