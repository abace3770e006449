from pathlib import Path

import numpy as np
import pytest

from reidkit.errors import InputError
from reidkit.index import NO_NEIGHBOR, Neighbors
from reidkit.report.results import Picture, QueryScore, SearchResults, chapters, labels, pictures, printable
from reidkit.types import DISTRACTOR, UNKNOWN_CAMERA, Crop


def scored(*precisions):
    """A search of queries with these average precisions, None for a query without an answer; one wrong hit each."""
    count = len(precisions)
    return SearchResults(
        [Picture(Path(f"{i}.jpg"), i, 0) for i in range(count)],
        [Picture(Path("g.jpg"), 999, 1)],
        Neighbors(np.zeros((count, 1), np.int64), np.ones((count, 1), np.float32)),
        [None if p is None else QueryScore(p, 2) for p in precisions],
    )


def parts(results, limit):
    return [(chapter.name, chapter.rows) for chapter in chapters(results, limit)]


def test_verdicts():
    queries = [Picture(Path("q"), 1), Picture(Path("q")), Picture(Path("q"), DISTRACTOR)]
    gallery = [Picture(Path("g"), 1), Picture(Path("g"), 2), Picture(Path("g")), Picture(Path("g"), DISTRACTOR)]
    every = np.tile(np.arange(4, dtype=np.int64), (3, 1))
    results = SearchResults(queries, gallery, Neighbors(every, every.astype(np.float32)))
    found = [[hit.verdict for hit in results.hits(query)] for query in range(3)]
    assert found == [
        ["right", "wrong", "unknown", "wrong"],
        ["unknown"] * 4,
        ["wrong", "wrong", "unknown", "wrong"],
    ]


def test_ranks_without_a_neighbor_are_no_hits(results):
    indices = np.array([[2, 0, NO_NEIGHBOR], [NO_NEIGHBOR] * 3], dtype=np.int64)
    results = SearchResults(results.queries, results.gallery, Neighbors(indices, results.neighbors.distances))
    assert [(hit.rank, hit.row) for hit in results.hits(0)] == [(1, 2), (2, 0)]
    assert results.hits(1) == []


def test_all_queries_are_shown_where_they_fit_hardest_first_and_unanswerable_last():
    assert parts(scored(0.5, None, 0.1, 0.9), 4) == [("all", (2, 0, 3)), ("unmatched", (1,))]


def test_hardest_middle_and_easiest_of_many():
    # Precision grows with the number of the query: 0 is the hardest, 17 the easiest.
    assert parts(scored(*(i / 20 for i in range(18))), 6) == [
        ("hardest", (0, 1)),
        ("between", (5, 12)),
        ("easiest", (17, 16)),
    ]


def test_the_unanswerable_take_at_most_a_sixth():
    shown = parts(scored(*[0.5] * 20, *[None] * 20), 12)
    assert [(name, len(rows)) for name, rows in shown] == [
        ("hardest", 4),
        ("between", 3),
        ("easiest", 3),
        ("unmatched", 2),
    ]


@pytest.mark.parametrize("limit", range(1, 14))
def test_never_more_than_the_limit_and_nobody_twice(limit):
    rows = [row for _, part in parts(scored(*[0.3, 0.6, None, 0.9] * 3), limit) for row in part]
    assert len(rows) == len(set(rows)) == min(limit, 12)


def test_without_scores_the_first_right_picture_decides(results):
    assert parts(results, 2) == [("all", (1, 0))]


def test_without_labels_queries_keep_their_order(results):
    unlabelled = SearchResults(
        [Picture(Path(f"{i}.jpg")) for i in range(6)],
        [Picture(Path("g.jpg"))],
        Neighbors(np.zeros((6, 1), np.int64), np.ones((6, 1), np.float32)),
    )
    assert parts(unlabelled, 10) == [("all", (0, 1, 2, 3, 4, 5))]
    assert parts(unlabelled, 3) == [("all", (1, 3, 5))]


def test_crops_become_pictures_under_the_names_of_the_data_set():
    crops = [Crop(Path("a"), 3, 0), Crop(Path("b"), DISTRACTOR, UNKNOWN_CAMERA), Crop(Path("c"), 4, 1)]
    made = pictures(crops, pid_names={3: "0003", DISTRACTOR: "0000"}, camera_names={0: "c1"})
    assert made == [
        Picture(Path("a"), "0003", "c1"),
        Picture(Path("b"), DISTRACTOR, None),
        Picture(Path("c"), 4, 1),
    ]
    assert [labels(picture) for picture in made] == [["id 0003", "camera c1"], ["distractor"], ["id 4", "camera 1"]]


def test_text_that_would_break_a_page_or_a_sheet_is_marked():
    assert printable("a\nb\u202ec\udce9 d\N{LATIN SMALL LETTER E WITH ACUTE}") == "a\ufffdb\ufffdc\ufffd d\xe9"


def test_parts_that_do_not_belong_together_are_refused(results):
    queries, gallery, neighbors = results.queries, results.gallery, results.neighbors
    with pytest.raises(InputError, match="There are no queries to show"):
        SearchResults([], gallery, neighbors)
    with pytest.raises(InputError, match=r"neighbours do not belong to the queries\n  got: 2\n  expected: 1"):
        SearchResults(queries[:1], gallery, neighbors)
    with pytest.raises(InputError, match=r"scores do not belong to the queries\n  got: 1\n  expected: 2"):
        SearchResults(queries, gallery, neighbors, [None])
    with pytest.raises(InputError, match=r"neighbours do not belong to the gallery\n  got: gallery rows 0 to 2"):
        SearchResults(queries, gallery[:2], neighbors)
    with pytest.raises(InputError, match=r"average precision of query 1 cannot be shown\n  got: nan"):
        SearchResults(queries, gallery, neighbors, [None, QueryScore(float("nan"), 1)])
    with pytest.raises(InputError, match="must be at least 1\n  got: 0"):
        chapters(results, 0)
