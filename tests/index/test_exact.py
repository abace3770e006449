import inspect
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reidkit.errors import InputError
from reidkit.index import NO_NEIGHBOR, nearest, nearest_by
from reidkit.index.exact import BYTES_PER_PAIR, smallest
from reidkit.metrics.distance import compare
from reidkit.metrics.distance import given as given_distances
from reidkit.metrics.junk import Exclusion


def on_a_line(*places):
    return np.array(places, dtype=np.float32)[:, None]


def memory_for(rows, query, gallery):
    """A limit of memory under which that many queries are compared at a time."""
    distances = compare(query, gallery, "euclidean")
    return distances.bytes_fixed + rows * distances.bytes_per_query + BYTES_PER_PAIR * len(gallery)


def excluding(columns, *, shape):
    return Exclusion(shape, lambda row: np.array(columns, dtype=np.int64))


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
    queries, crops = on_a_line(*query), on_a_line(*gallery)
    found = nearest(queries, crops, top=top, metric="euclidean", memory=memory_for(block, queries, crops))
    for asked, row in zip(query, found.indices.tolist(), strict=True):
        assert row == sorted(range(len(gallery)), key=lambda i: (abs(gallery[i] - asked), i))[:top]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    columns=st.integers(1, 700),
    places=st.sampled_from([1, 3, 40, 10**6]),
    top=st.integers(1, 60),
)
def test_the_smallest_of_long_rows_agree_with_a_stable_sort(seed, columns, places, top):
    values = np.random.default_rng(seed).integers(-places, places, (3, columns)).astype(np.float32)
    top = min(top, columns)
    order = np.argsort(values, axis=1, kind="stable")[:, :top]
    for row, expected in zip(values, order, strict=True):
        indices, found = smallest(row, top)
        assert indices.tolist() == expected.tolist()
        assert found.tolist() == row[expected].tolist()


def test_negative_zero_ties_with_zero():
    assert smallest(np.array([0.0, -0.0, -1.0, 0.0], np.float32), 4)[0].tolist() == [2, 0, 1, 3]


def test_any_distances_can_be_searched_even_negative_ones():
    matrix = np.array([[-3, -5, 2, -5], [0.5, 0.25, -1, 8]], np.float32)
    found = nearest_by(given_distances(matrix), top=3)
    assert found.indices.tolist() == [[1, 3, 0], [2, 1, 0]]
    assert found.distances.tolist() == [[-5, -5, -3], [-1, 0.25, 0.5]]


def test_given_distances_are_not_changed():
    matrix = np.array([[3, 1, 2]], np.float32)
    nearest_by(given_distances(matrix), exclude=[excluding([1], shape=(1, 3))])
    assert matrix.tolist() == [[3, 1, 2]]


def test_a_pair_is_left_out_when_any_exclusion_says_so():
    exclude = [excluding([1], shape=(1, 3)), excluding([1, 2], shape=(1, 3))]
    found = nearest(on_a_line(0), on_a_line(1, 2, 3), metric="euclidean", exclude=exclude)
    assert found.indices.tolist() == [[0, NO_NEIGHBOR, NO_NEIGHBOR]]
    assert found.distances.tolist() == [[1, np.inf, np.inf]]


def test_each_query_has_its_own_exclusions_whatever_the_blocks():
    queries, gallery = on_a_line(0, 0, 0, 0, 0), on_a_line(1, 2, 3, 4, 5)
    each = Exclusion((5, 5), lambda row: np.arange(row, dtype=np.int64))
    memory = memory_for(2, queries, gallery)
    found = nearest(queries, gallery, top=2, metric="euclidean", exclude=[each], memory=memory)
    assert found.indices.tolist() == [[0, 1], [1, 2], [2, 3], [3, 4], [4, NO_NEIGHBOR]]


def test_progress_counts_queries():
    seen = []
    queries, gallery = on_a_line(*range(5)), on_a_line(1)
    memory = memory_for(2, queries, gallery)
    nearest(queries, gallery, memory=memory, metric="euclidean", progress=lambda *step: seen.append(step))
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_an_empty_gallery_is_refused():
    with pytest.raises(InputError, match="The gallery is empty"):
        nearest(on_a_line(1), np.empty((0, 1), np.float32))


@pytest.mark.parametrize("top", [0, -3, 2.5, 1.0, "3"])
def test_a_top_that_is_no_number_of_crops_is_refused(top):
    # Without the checks of types that stand before it under pytest only.
    with pytest.raises(InputError, match=rf"top must be a whole number, 1 or above\n  got: {top}"):
        inspect.unwrap(nearest_by)(given_distances(np.ones((1, 3), np.float32)), top=top)


def test_a_top_of_numpy_is_a_number():
    found = inspect.unwrap(nearest_by)(given_distances(np.array([[3, 1, 2]], np.float32)), top=np.int32(2))
    assert found.indices.tolist() == [[1, 2]]


def test_too_little_memory_for_one_query_is_refused():
    queries, gallery = on_a_line(1), on_a_line(1, 2, 3)
    memory = memory_for(1, queries, gallery)
    assert nearest(queries, gallery, memory=memory, metric="euclidean").indices.shape == (1, 3)
    with pytest.raises(InputError, match=rf"too small to compare[\s\S]*got: {memory - 1}[\s\S]*expected: {memory}"):
        nearest(queries, gallery, memory=memory - 1, metric="euclidean")


@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("top", [5, 3000])
def test_the_peak_of_memory_is_within_the_limit(kind, top):
    rng = np.random.default_rng(0)
    queries, gallery = (rng.normal(size=(count, 16)).astype(kind) for count in (300, 3000))
    gallery[2000:] = gallery[:1000]
    memory = 2 << 20
    tracemalloc.start()
    found = nearest(queries, gallery, top=top, memory=memory)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    notes = 100 * len(gallery)  # of lengths and repeats
    assert peak < memory + found.indices.nbytes + found.distances.nbytes + notes


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_however_the_embeddings_lie_in_memory(metric):
    rng = np.random.default_rng(1)
    queries, gallery = (rng.normal(size=(count, 6)).astype(np.float32) for count in (5, 40))
    expected = nearest(queries, gallery, metric=metric).indices.tolist()
    read_only = gallery.copy()
    read_only.setflags(write=False)
    spread = np.zeros((80, 12), np.float32)
    spread[::2, ::2] = gallery
    lying = (np.asfortranarray(gallery), gallery[::-1].copy()[::-1], read_only, spread[::2, ::2], gallery.astype(">f4"))
    for same in lying:
        assert nearest(queries, same, metric=metric).indices.tolist() == expected
        assert nearest(same, gallery, top=1, metric=metric).indices.ravel().tolist() == list(range(40))


def test_embeddings_of_two_models_are_refused():
    with pytest.raises(InputError, match=r"differ in width\n  got: 1 and 2"):
        nearest(on_a_line(1), np.ones((3, 2), np.float32))


def test_bad_embeddings_are_named():
    with pytest.raises(InputError, match=r"1 of 2 gallery embeddings hold NaN[\s\S]*the first in row 1"):
        nearest(on_a_line(1), on_a_line(1, np.nan))


def test_an_exclusion_of_other_data_is_refused():
    with pytest.raises(InputError, match=r"exclusion does not fit[\s\S]*\(1, 2\)[\s\S]*\(1, 3\)"):
        nearest(on_a_line(1), on_a_line(1, 2, 3), exclude=[excluding([], shape=(1, 2))])
