import tracemalloc

import numpy as np
import pytest

from reidkit.errors import InputError
from reidkit.index import augment_gallery, expand_queries


def table(*rows, dtype=np.float32):
    return np.array(rows, dtype=dtype)


def cosine(one, other):
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def by_loop(queries, gallery, neighbors, alpha, metric, *, skip_itself=False):
    """The definition, one embedding at a time, in float64."""
    queries, gallery = queries.astype(np.float64), gallery.astype(np.float64)
    if metric == "cosine":
        queries = np.array([row / np.linalg.norm(row) for row in queries])
        gallery = np.array([row / np.linalg.norm(row) for row in gallery])
    means = []
    for number, query in enumerate(queries):
        others = [i for i in range(len(gallery)) if not (skip_itself and i == number)]
        others.sort(key=lambda i: (round(float(np.sum((gallery[i] - query) ** 2)), 9), i))
        total, weights = query.copy(), 1.0
        for other in others[:neighbors]:
            weight = max(cosine(query, gallery[other]), 0.0) ** alpha if alpha else 1.0
            total += weight * gallery[other]
            weights += weight
        mean = total / weights
        means.append(mean / np.linalg.norm(mean) if metric == "cosine" else mean)
    return np.array(means)


def test_a_plain_mean_by_hand():
    # The two nearest of (2, 0) are (4, 0) and (2, 3): their mean is (8, 3) / 3.
    gallery = table([2, 3], [9, 9], [4, 0])
    moved = expand_queries(table([2, 0]), gallery, neighbors=2, metric="euclidean")
    np.testing.assert_allclose(moved, [[8 / 3, 1]], rtol=1e-6)
    assert moved.dtype == np.float32


def test_under_cosine_directions_are_averaged_by_hand():
    # The lengths 2 and 5 do not matter: (1, 0) and (0, 1) make (1, 1), of length 1.
    moved = expand_queries(table([2, 0]), table([0, 5], [-3, 0]), neighbors=1)
    np.testing.assert_allclose(moved, [[0.5**0.5, 0.5**0.5]], rtol=1e-6)


def test_alpha_weighs_by_the_cosine_by_hand():
    # Cosine 0.6 to the power of 2 is 0.36: (1, 0) + 0.36 (0.6, 0.8) = (1.216, 0.288).
    moved = expand_queries(table([1, 0]), table([3, 4]), neighbors=1, alpha=2.0)
    np.testing.assert_allclose(moved, [[1.216, 0.288] / np.hypot(1.216, 0.288)], rtol=1e-6)


def test_alpha_leaves_opposite_neighbors_out():
    moved = expand_queries(table([1, 0]), table([-3, 4], [-1, 0]), neighbors=2, alpha=0.5)
    np.testing.assert_allclose(moved, [[1, 0]], atol=1e-7)


def test_alpha_weighs_by_the_cosine_under_euclidean_too_by_hand():
    moved = expand_queries(table([1, 0]), table([3, 4]), neighbors=1, alpha=1.0, metric="euclidean")
    np.testing.assert_allclose(moved, [[(1 + 0.6 * 3) / 1.6, 0.6 * 4 / 1.6]], rtol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_least_alpha_is_a_plain_mean_of_those_that_are_not_opposite(metric):
    # (-1, 0) is opposite and (0, 1) is square to it; 0.6 to the power of almost 0 is 1.
    gallery = table([-1, 0], [0, 1], [0.6, 0.8])
    moved = expand_queries(table([1, 0]), gallery, neighbors=3, alpha=1e-50, metric=metric)
    mean = np.array([0.8, 0.4])
    np.testing.assert_allclose(moved, [mean / np.linalg.norm(mean) if metric == "cosine" else mean], atol=1e-6)


def test_the_largest_alpha_leaves_all_but_copies_out():
    moved = expand_queries(table([1, 0]), table([2, 0], [3, 4]), neighbors=2, alpha=1e39, metric="euclidean")
    assert moved.tolist() == [[1.5, 0]]


def test_a_zero_row_is_refused_before_the_search():
    seen = []
    options = {"neighbors": 1, "alpha": 1.0, "metric": "euclidean", "progress": lambda *step: seen.append(step)}
    with pytest.raises(InputError, match=r"gallery embedding.*zero[\s\S]*row 1"):
        expand_queries(table([1, 0]), table([1, 0], [0, 0]), **options)
    with pytest.raises(InputError, match=r"gallery embedding.*zero[\s\S]*row 1"):
        augment_gallery(table([1, 0], [0, 0]), **options)
    assert seen == []


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_peak_of_memory_is_within_the_limit(metric):
    rng = np.random.default_rng(0)
    queries, gallery = (rng.normal(size=(count, 512)).astype(np.float32) for count in (100, 500))
    memory, notes = 3 << 20, 100 * 500  # notes of lengths and repeats
    for expand in (
        lambda: expand_queries(queries, gallery, neighbors=8, alpha=3.0, metric=metric, memory=memory),
        lambda: augment_gallery(gallery, neighbors=8, alpha=3.0, metric=metric, memory=memory),
    ):
        tracemalloc.start()
        moved = expand()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < memory + moved.nbytes + 12 * 8 * len(moved) + notes


def test_each_crop_of_the_gallery_stays_in_its_own_mean_by_hand():
    moved = augment_gallery(table([0, 0], [2, 0], [2, 6]), neighbors=1, metric="euclidean")
    assert moved.tolist() == [[1, 0], [1, 0], [2, 3]]


def test_of_equally_near_neighbors_the_first_is_taken():
    gallery = table([3, 0], [1, 0], [2, 1])
    assert expand_queries(table([2, 0]), gallery, neighbors=1, metric="euclidean").tolist() == [[2.5, 0]]


def test_a_duplicate_in_the_gallery_is_another_crop():
    moved = augment_gallery(table([4, 0], [4, 0], [0, 0]), neighbors=1, metric="euclidean")
    assert moved.tolist() == [[4, 0], [4, 0], [2, 0]]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_agrees_with_a_loop(metric, alpha, kind):
    rng = np.random.default_rng(3)
    queries, gallery = (rng.normal(size=(count, 6)).astype(kind) for count in (9, 14))
    for neighbors in (1, 4, 13):
        moved = expand_queries(queries, gallery, neighbors=neighbors, alpha=alpha, metric=metric)
        np.testing.assert_allclose(moved, by_loop(queries, gallery, neighbors, alpha, metric), atol=2e-6)
        moved = augment_gallery(gallery, neighbors=neighbors, alpha=alpha, metric=metric)
        expected = by_loop(gallery, gallery, neighbors, alpha, metric, skip_itself=True)
        np.testing.assert_allclose(moved, expected, atol=2e-6)
        assert moved.dtype == np.float32


def test_ties_agree_with_a_loop():
    rng = np.random.default_rng(4)
    for _ in range(20):
        queries, gallery = (rng.integers(0, 3, (count, 2)).astype(np.float32) for count in (5, 12))
        for moved, expected in (
            (
                expand_queries(queries, gallery, neighbors=5, metric="euclidean"),
                by_loop(queries, gallery, 5, 0, "euclidean"),
            ),
            (
                augment_gallery(gallery, neighbors=5, metric="euclidean"),
                by_loop(gallery, gallery, 5, 0, "euclidean", skip_itself=True),
            ),
        ):
            np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_wide_embeddings_are_taken_in_parts():
    rng = np.random.default_rng(6)
    queries, gallery = (rng.normal(size=(count, 50_000)).astype(np.float32) for count in (5, 4))
    moved = expand_queries(queries, gallery, neighbors=2, alpha=2.0)
    np.testing.assert_allclose(moved, by_loop(queries, gallery, 2, 2.0, "cosine"), atol=1e-6)


def test_what_was_given_is_not_changed():
    queries, gallery = table([2, 0]), table([4, 0], [0, 2])
    expand_queries(queries, gallery, neighbors=1, metric="euclidean")
    augment_gallery(gallery, neighbors=1, metric="euclidean")
    assert (queries.tolist(), gallery.tolist()) == ([[2, 0]], [[4, 0], [0, 2]])


def test_expansion_brings_clustered_queries_closer(clustered):
    embeddings, pids = clustered
    queries, gallery = embeddings[::9], np.delete(embeddings, np.s_[::9], axis=0)
    others = np.delete(pids, np.s_[::9])

    def right(asked, searched):
        units = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (asked, searched)]
        nearest = np.argsort(-(units[0] @ units[1].T), axis=1)[:, :8]
        return float((others[nearest] == pids[::9, None]).mean())

    expanded = expand_queries(queries, gallery, neighbors=4, alpha=3.0)
    augmented = augment_gallery(gallery, neighbors=4)
    assert right(queries, gallery) + 0.03 < right(expanded, gallery)
    assert right(queries, gallery) + 0.03 < right(queries, augmented)


def test_no_queries_stay_none():
    assert expand_queries(np.empty((0, 2), np.float32), table([1, 0]), neighbors=1).shape == (0, 2)


def test_progress_counts_embeddings():
    seen = []
    expand_queries(table([1, 0], [0, 1]), table([1, 0]), neighbors=1, progress=lambda *step: seen.append(step))
    augment_gallery(table([1, 0], [0, 1], [1, 1]), neighbors=1, progress=lambda *step: seen.append(step))
    assert seen == [(2, 2), (3, 3)]


def test_more_neighbors_than_there_are_is_refused():
    query, gallery = table([1, 0]), table([1, 0], [0, 1])
    expand_queries(query, gallery, neighbors=2)
    with pytest.raises(
        InputError, match=r"neighbors is larger than the gallery\n  got: neighbors 3\n  expected: at most 2"
    ):
        expand_queries(query, gallery, neighbors=3)
    augment_gallery(gallery, neighbors=1)
    with pytest.raises(InputError, match=r"larger than the gallery[\s\S]*at most 1, the number of others"):
        augment_gallery(gallery, neighbors=2)
    with pytest.raises(InputError, match=r"larger than the gallery[\s\S]*at most 0"):
        expand_queries(query, np.empty((0, 2), np.float32), neighbors=1)


def test_no_neighbors_are_refused():
    with pytest.raises(InputError, match=r"neighbors must be a whole number, 1 or above\n  got: 0"):
        expand_queries(table([1, 0]), table([1, 0]), neighbors=0)


@pytest.mark.parametrize("alpha", [-1.0, np.nan, np.inf])
def test_an_alpha_without_meaning_is_refused(alpha):
    with pytest.raises(InputError, match=r"alpha must be a finite number, 0 or above\n  got: (-1|nan|inf)"):
        expand_queries(table([1, 0]), table([1, 0]), neighbors=1, alpha=alpha)


def test_neighbors_that_cancel_out_are_refused():
    with pytest.raises(InputError, match=r"A query embedding and its neighbours cancel out[\s\S]*got: row 1"):
        expand_queries(table([1, 0], [0, 1]), table([0, -2]), neighbors=1)
    expand_queries(table([1, 0], [0, 1]), table([0, -2]), neighbors=1, metric="euclidean")


def test_bad_embeddings_are_named():
    with pytest.raises(InputError, match=r"1 of 2 gallery embeddings hold NaN[\s\S]*the first in row 1"):
        augment_gallery(table([1, 0], [0, np.nan]), neighbors=1)
    with pytest.raises(InputError, match=r"query embedding.*zero"):
        expand_queries(table([0, 0]), table([1, 0]), neighbors=1)
    with pytest.raises(InputError, match=r"query embedding.*zero"):
        expand_queries(table([0, 0]), table([1, 0]), neighbors=1, alpha=1.0, metric="euclidean")
    with pytest.raises(InputError, match=r"differ in width\n  got: 2 and 3"):
        expand_queries(table([1, 0]), table([1, 0, 0]), neighbors=1)
    with pytest.raises(InputError, match="too small to compare"):
        expand_queries(table([1, 0]), table([1, 0]), neighbors=1, memory=1)
