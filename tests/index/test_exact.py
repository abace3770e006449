from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reidkit.errors import InputError
from reidkit.index import NO_NEIGHBOR, nearest


def on_a_line(*places):
    return np.array(places, dtype=np.float32)[:, None]


def test_nearest_first_by_hand():
    found = nearest(on_a_line(0, 10), on_a_line(7, 1, 4, 9), top=3, metric="euclidean")
    assert found.indices.tolist() == [[1, 2, 0], [3, 0, 2]]
    assert found.distances.tolist() == [[1, 4, 7], [1, 3, 6]]
    assert (found.indices.dtype, found.distances.dtype) == (np.int64, np.float32)


def test_cosine_by_hand():
    gallery = np.array([[0, 3], [5, 0], [-1, 0], [1, 1]], dtype=np.float32)
    found = nearest(np.array([[2, 0]], dtype=np.float32), gallery, top=4)
    assert found.indices.tolist() == [[1, 3, 0, 2]]
    np.testing.assert_allclose(found.distances, [[0, 1 - 0.5**0.5, 1, 2]], atol=1e-6)


def test_ties_go_to_the_first_in_the_gallery():
    # Six rows at distance 2 on either side of the query and one nearer, last: order decides.
    found = nearest(on_a_line(5), on_a_line(7, 3, 3, 7, 7, 3, 4), top=4, metric="euclidean")
    assert found.indices.tolist() == [[6, 0, 1, 2]]


def test_a_small_gallery_gives_all_it_has():
    found = nearest(on_a_line(0), on_a_line(2, 1), top=10, metric="euclidean")
    assert found.indices.tolist() == [[1, 0]]


def test_no_queries_find_nothing():
    assert nearest(np.empty((0, 1), np.float32), on_a_line(2, 1)).indices.shape == (0, 2)


@settings(max_examples=60, deadline=None)
@given(
    # Few places: many ties.
    query=st.lists(st.integers(0, 4), min_size=1, max_size=7),
    gallery=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    top=st.integers(1, 14),
    block=st.integers(1, 8),
)
def test_agrees_with_a_plain_sort(query, gallery, top, block):
    found = nearest(on_a_line(*query), on_a_line(*gallery), top=top, metric="euclidean", block=block)
    for asked, row in zip(query, found.indices.tolist(), strict=True):
        assert row == sorted(range(len(gallery)), key=lambda i: (abs(gallery[i] - asked), i))[:top]


def test_a_pair_is_left_out_when_any_exclusion_says_so():
    first = lambda rows: np.array([[True, False, False]])  # noqa: E731
    last = lambda rows: np.array([[False, False, True]])  # noqa: E731
    found = nearest(on_a_line(0), on_a_line(1, 2, 3), metric="euclidean", exclude=[first, last])
    assert found.indices.tolist() == [[1, NO_NEIGHBOR, NO_NEIGHBOR]]


def test_progress_counts_queries():
    seen = []
    nearest(on_a_line(*range(5)), on_a_line(1), block=2, metric="euclidean", progress=lambda *step: seen.append(step))
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_an_empty_gallery_is_refused():
    with pytest.raises(InputError, match="The gallery is empty"):
        nearest(on_a_line(1), np.empty((0, 1), np.float32))


@pytest.mark.parametrize("name", ["top", "block"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(InputError, match=rf"{name} must be at least 1\n  got: 0"):
        nearest(on_a_line(1), on_a_line(1), **cast("dict[str, Any]", {name: 0}))


def test_bad_embeddings_are_named():
    with pytest.raises(InputError, match=r"1 of 2 gallery embeddings hold NaN[\s\S]*the first in row 1"):
        nearest(on_a_line(1), on_a_line(1, np.nan))


def test_an_exclusion_of_other_data_is_refused():
    with pytest.raises(InputError, match=r"exclusion does not fit[\s\S]*\(1, 2\)[\s\S]*\(1, 3\)"):
        nearest(on_a_line(1), on_a_line(1, 2, 3), exclude=[lambda _: np.zeros((1, 2), dtype=bool)])
