import math
import re
import tracemalloc

import numpy as np
import pytest

from reidkit.errors import ConfigError, InputError
from reidkit.index import KReciprocal, nearest_by, rerank
from reidkit.metrics.distance import compare, distance_blocks, row_blocks
from reidkit.metrics.junk import Exclusion, Labels
from reidkit.metrics.ranking import rank_gallery


def dense(query, gallery, how, metric):
    """The paper's definition, with sets and loops, in float64; as the authors' code where the paper leaves it open."""
    crops = np.concatenate([query, gallery]).astype(np.float64)
    if metric == "cosine":
        crops /= np.sqrt((crops**2).sum(axis=1, keepdims=True))
    squared = ((crops[:, None] - crops[None]) ** 2).sum(axis=2)
    count = len(crops)
    distance = np.array([row / row.max() if row.max() > 0 else row for row in squared])
    # Rounded only so that what is equally far by definition is so in float64.
    order = np.argsort(np.round(squared, 9), axis=1, kind="stable").tolist()
    order = [[p, *(j for j in near if j != p)] for p, near in enumerate(order)]

    def mutual(k):
        return [{j for j in order[p][: k + 1] if p in order[j][: k + 1]} for p in range(count)]

    encodings = np.zeros((count, count))
    cores, halves = mutual(how.k1), mutual(int(np.around(how.k1 / 2)))
    for p, core in enumerate(cores):
        members = set(core)
        for theirs in (halves[candidate] for candidate in core):
            if len(theirs & core) > 2 / 3 * len(theirs):
                members |= theirs
        total = sum(math.exp(-distance[p, j]) for j in members)
        for j in members:
            encodings[p, j] = math.exp(-distance[p, j]) / total
    if how.k2 != 1:
        encodings = np.array([encodings[order[p][: how.k2]].mean(axis=0) for p in range(count)])
    final = np.empty((len(query), len(gallery)))
    for i in range(len(query)):
        for j in range(len(gallery)):
            shared = np.minimum(encodings[i], encodings[len(query) + j]).sum()
            jaccard = 1 - shared / (2 - shared)
            final[i, j] = (1 - how.weight) * jaccard + how.weight * distance[i, len(query) + j]
    return final


def everything(distances, memory=1 << 30):
    return np.concatenate([distances.block(rows) for rows in row_blocks(distances, memory=memory)])


def check(query, gallery, how, metric, **options):
    found = everything(rerank(query, gallery, how, metric=metric, **options))
    np.testing.assert_allclose(found, dense(query, gallery, how, metric), rtol=0, atol=1e-6)
    assert found.dtype == np.float32


def crowd(rng, queries, gallery, dim=5, people=4):
    """Crops of a few people, some of them near each other."""
    centers = rng.normal(size=(people, dim))
    crops = centers[rng.integers(0, people, queries + gallery)] + rng.normal(size=(queries + gallery, dim)) * 0.6
    return crops[:queries].astype(np.float32), crops[queries:].astype(np.float32)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("seed", range(6))
def test_equals_the_dense_definition(metric, seed):
    rng = np.random.default_rng(seed)
    query, gallery = crowd(rng, int(rng.integers(1, 9)), int(rng.integers(20, 45)))
    for k1, k2 in ((1, 1), (1, 2), (2, 2), (3, 1), (5, 3), (6, 7), (10, 4), (20, 6)):
        check(query, gallery, KReciprocal(k1, k2, float(rng.choice([0.0, 0.3, 0.5, 1.0]))), metric)


@pytest.mark.parametrize("seed", range(12))
def test_ties_go_by_row_with_queries_first(seed):
    # Crops at few places of a small grid: every distance is exact, and almost all of them are tied.
    rng = np.random.default_rng(100 + seed)
    side = int(rng.integers(2, 6))
    query, gallery = (rng.integers(0, side, (int(count), 2)).astype(np.float32) for count in rng.integers(1, 22, 2))
    count = len(query) + len(gallery)
    for k1 in {1, 2, 4, 7, count - 1} & set(range(1, count)):
        check(query, gallery, KReciprocal(k1, min(3, k1 + 1)), "euclidean")


@pytest.mark.parametrize("seed", range(3))
def test_duplicates_among_queries_and_gallery(seed):
    rng = np.random.default_rng(200 + seed)
    query, gallery = (crops.round() for crops in crowd(rng, 6, 15, dim=3))
    query = np.concatenate([query, query[:2], gallery[:2]])
    gallery = np.concatenate([gallery, gallery[:5], query[:3], gallery[:5]])
    for how in (KReciprocal(3, 2), KReciprocal(8, 4, 0.1), KReciprocal(4, 5)):
        check(query, gallery, how, "euclidean")


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("dim", [3, 17])
@pytest.mark.parametrize("seed", range(3))
def test_duplicates_of_any_numbers_within_and_across_the_two_sets(seed, dim, metric):
    rng = np.random.default_rng(300 + seed)
    query, gallery = crowd(rng, 6, 15, dim)
    query = np.concatenate([query, query[:2], gallery[:2], query[:1]])
    gallery = np.concatenate([gallery, gallery[:5], query[:3], gallery[:5]])
    for how in (KReciprocal(3, 2), KReciprocal(8, 4, 0.1), KReciprocal(4, 5), KReciprocal(20, 6)):
        check(query, gallery, how, metric)
        check(query.astype(np.float16).astype(np.float32), gallery.astype(np.float16), how, metric)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_queries_that_are_the_gallery(metric):
    crops = np.concatenate(crowd(np.random.default_rng(30), 10, 10, dim=9))
    for how in (KReciprocal(4, 2), KReciprocal(9, 3), KReciprocal(20, 6)):
        check(crops, crops, how, metric)
    # One at a time: no row is rounded as in one block.
    check(crops, crops, KReciprocal(9, 3), metric, memory=10_000)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_crop_with_more_duplicates_than_neighbors_is_still_its_own_neighbor(metric):
    query, gallery = crowd(np.random.default_rng(31), 2, 12, dim=8)
    gallery = np.concatenate([gallery, np.repeat(query[:1], 9, axis=0)])
    for how in (KReciprocal(3, 1, 0.0), KReciprocal(3, 2), KReciprocal(4, 4)):
        check(query, gallery, how, metric)
    # Of equally near ones the first are its neighbours: rows 12 to 14, beside itself.
    found = everything(rerank(query, gallery, KReciprocal(3, 1, 0.0), metric=metric))
    assert found[0, 12:15].tolist() == [0, 0, 0]


def test_zeros_of_either_sign_are_one_number():
    query, gallery = crowd(np.random.default_rng(32), 4, 16, dim=3)
    gallery[:, 1] = query[:, 1] = 0
    gallery[4:8] = query
    gallery[4:8, 1] = -0.0
    check(query, gallery, KReciprocal(5, 3), "cosine")


def test_neighbors_up_to_everybody():
    query, gallery = crowd(np.random.default_rng(7), 3, 9)
    for k2 in (1, 2, 11, 12):
        check(query, gallery, KReciprocal(11, k2), "euclidean")


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("counts", [(1, 1), (1, 2), (5, 1)])
def test_the_smallest_galleries(counts, metric):
    check(*crowd(np.random.default_rng(8), *counts), KReciprocal(1, 1), metric)
    check(*crowd(np.random.default_rng(9), *counts), KReciprocal(1, 2), metric)


def test_by_hand():
    # On a line: a query at 0, gallery crops at 1, 2 and 10. With one neighbour each, in rows q, a, b, c:
    # N(q) = {q, a}; N(a) = {a, q}, q being the earlier of two equally near; N(b) = {b, a}; N(c) = {c, b}.
    # Mutual are q and a only. Half of 1 is rounded to 0: nothing is expanded.
    # d(q, .) = (0, 1, 4, 100) / 100 and d(a, .) = (1, 0, 1, 81) / 81.
    far, near = math.exp(-1 / 100), math.exp(-1 / 81)
    q = (1 / (1 + far), far / (1 + far))
    a = (near / (1 + near), 1 / (1 + near))
    shared = min(q[0], a[0]) + min(q[1], a[1])
    query, gallery = (np.array(line, np.float32)[:, None] for line in ([0], [1, 2, 10]))
    found = everything(rerank(query, gallery, KReciprocal(1, 1, 0.25), metric="euclidean"))
    expected = [[0.75 * (1 - shared / (2 - shared)) + 0.25 * 0.01, 0.75 + 0.25 * 0.04, 1.0]]
    np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_where_all_embeddings_are_equal_the_original_distance_is_zero(metric):
    point = np.random.default_rng(33).normal(size=(1, 37)).astype(np.float32)
    query, gallery = np.repeat(point, 2, axis=0), np.repeat(point, 9, axis=0)
    check(query, gallery, KReciprocal(4, 2), metric)
    np.testing.assert_array_equal(everything(rerank(query, gallery, KReciprocal(4, 2, 1.0), metric=metric)), 0)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_largest_distance_within_rounding_is_zero(metric):
    rng = np.random.default_rng(34)
    point = rng.normal(size=37)
    lengths = rng.uniform(1, 1 if metric == "euclidean" else 9, (11, 1))
    crops = (point * lengths + rng.normal(size=(11, 37)) * 1e-7).astype(np.float32)
    found = everything(rerank(crops[:2], crops[2:], KReciprocal(4, 2, 1.0), metric=metric))
    np.testing.assert_array_equal(found, 0)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_float16_is_taken_as_it_is(metric):
    query, gallery = (crops.astype(np.float16) for crops in crowd(np.random.default_rng(11), 7, 30))
    check(query, gallery, KReciprocal(6, 3), metric)
    check(query.astype(np.float32), gallery, KReciprocal(6, 3), metric)


def test_lengths_do_not_matter_under_cosine():
    query, gallery = crowd(np.random.default_rng(12), 4, 25)
    scaled = gallery * np.linspace(1, 1000, 25, dtype=np.float32)[:, None]
    one, other = (everything(rerank(query, crops, KReciprocal(5, 3))) for crops in (gallery, scaled))
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_least_memory_gives_the_same(metric):
    query, gallery = crowd(np.random.default_rng(13), 9, 40)
    how = KReciprocal(6, 3)
    with pytest.raises(InputError, match="limit of memory is too small") as caught:
        rerank(query, gallery, how, metric=metric, memory=1)
    least = int(re.findall(r"(\d+) bytes at least", str(caught.value))[0])
    check(query, gallery, how, metric, memory=least)
    small = rerank(query, gallery, how, metric=metric, memory=least)
    blocks = list(row_blocks(small, memory=small.bytes_fixed + small.bytes_per_query))
    assert len(blocks) == 9
    one_by_one = np.concatenate([small.block(rows) for rows in blocks])
    np.testing.assert_allclose(one_by_one, dense(query, gallery, how, metric), rtol=0, atol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(("k1", "k2", "people"), [(20, 6, 20), (70, 10, 20), (70, 10, 4)])
def test_the_peak_of_memory_is_within_the_limit(metric, k1, k2, people):
    # With 4 people the neighbours are nearly all mutual, and sets are as large as they can be.
    query, gallery = crowd(np.random.default_rng(35), 100, 200, 16, people)
    memory, count = 6 << 20, len(query) + len(gallery)
    tracemalloc.start()
    distances = rerank(query, gallery, KReciprocal(k1, k2), metric=metric, memory=memory)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    values = kept / 8  # of encodings, at most
    assert peak < memory + 14 * count * (k1 + 1) + 32 * values
    limit = distances.bytes_fixed + 10 * distances.bytes_per_query
    tracemalloc.start()
    for _ in distance_blocks(distances, memory=limit):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < limit + 50_000


def test_neighbors_of_neighbors_that_do_not_fit_are_refused_before_the_work():
    query, gallery = crowd(np.random.default_rng(36), 20, 100)
    seen = []
    memory = 100 * 101 * 51
    with pytest.raises(InputError, match=rf"too small to re-rank with as many[\s\S]*{memory} bytes at least") as caught:
        rerank(query, gallery, KReciprocal(100, 2), memory=memory - 1, progress=lambda *step: seen.append(step))
    assert "lower k1" in str(caught.value)
    assert seen == []
    rerank(query, gallery, KReciprocal(100, 2), memory=memory)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_however_the_embeddings_lie_in_memory(metric):
    query, gallery = crowd(np.random.default_rng(37), 4, 20)
    read_only = gallery.copy()
    read_only.setflags(write=False)
    lying = (np.asfortranarray(gallery), gallery[::-1].copy()[::-1], read_only, gallery.astype(">f4"))
    for same in lying:
        check(query, same, KReciprocal(5, 3), metric)
        check(same, query, KReciprocal(5, 3), metric)


def test_a_block_stands_for_its_rows():
    distances = rerank(*crowd(np.random.default_rng(14), 9, 40), KReciprocal(6, 3))
    assert distances.shape == (9, 40)
    np.testing.assert_allclose(distances.block(slice(4, 7)), everything(distances)[4:7], atol=1e-6)


def test_no_queries_are_no_distances():
    query, gallery = crowd(np.random.default_rng(15), 2, 12)
    distances = rerank(query[:0], gallery, KReciprocal(3, 2))
    assert distances.shape == (0, 12)
    assert list(row_blocks(distances)) == []


def test_reranked_distances_can_be_searched():
    query, gallery = crowd(np.random.default_rng(16), 5, 30)
    how = KReciprocal(6, 3)
    expected = dense(query, gallery, how, "cosine")
    found = nearest_by(rerank(query, gallery, how), top=4)
    assert found.indices.tolist() == np.argsort(expected, axis=1)[:, :4].tolist()
    first = Exclusion((5, 30), lambda row: found.indices[row, :1].copy())
    others = nearest_by(rerank(query, gallery, how), top=3, exclude=[first])
    assert others.indices.tolist() == found.indices[:, 1:].tolist()


def test_clusters_are_found_again(clustered):
    embeddings, pids = clustered
    asked = np.arange(len(pids)) % 9 == 0
    parts = embeddings[asked], embeddings[~asked]
    labels = [Labels(pids[which], np.full(which.sum(), camera)) for camera, which in enumerate((asked, ~asked))]
    plain = rank_gallery(compare(*parts), *labels)
    better = rank_gallery(rerank(*parts, KReciprocal(8, 4)), *labels)
    assert better.mean_ap > plain.mean_ap + 0.05


def test_progress_counts_crops_twice():
    seen = []
    query, gallery = crowd(np.random.default_rng(17), 2, 12)
    rerank(query, gallery, KReciprocal(3, 2), progress=lambda *step: seen.append(step))
    assert seen == [(14, 28), (28, 28)]


def test_k1_larger_than_the_gallery_is_refused():
    query, gallery = crowd(np.random.default_rng(18), 2, 12)
    rerank(query, gallery, KReciprocal(13, 2))
    message = (
        r"k1 of re-ranking is larger than the gallery\n  got: k1 14 with 2 queries and 12 gallery crops\n  expected: 13"
    )
    with pytest.raises(InputError, match=message + r" at most[\s\S]*to do: lower k1"):
        rerank(query, gallery, KReciprocal(14, 2))
    with pytest.raises(InputError, match=r"larger than the gallery[\s\S]*expected: 0 at most"):
        rerank(query[:1], gallery[:0], KReciprocal(1, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), r"k1 of re-ranking must be at least 1\n  got: 0"),
        ((5, 0), r"k2 of re-ranking is out of range\n  got: 0\n  expected: 1 to 6"),
        ((5, 7), r"k2 of re-ranking is out of range\n  got: 7\n  expected: 1 to 6"),
        ((5, 2, -0.1), r"weight of re-ranking is out of range\n  got: -0.1\n  expected: 0 to 1"),
        ((5, 2, 1.1), r"weight of re-ranking is out of range\n  got: 1.1"),
        ((5, 2, float("nan")), r"weight of re-ranking is out of range\n  got: nan"),
    ],
)
def test_parameters_without_meaning_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        KReciprocal(*arguments)


def test_bad_embeddings_are_named():
    query, gallery = crowd(np.random.default_rng(19), 2, 12)
    how = KReciprocal(3, 2)
    broken = gallery.copy()
    broken[5, 1] = np.inf
    with pytest.raises(InputError, match=r"1 of 12 gallery embeddings hold NaN or infinite[\s\S]*first in row 5"):
        rerank(query, broken, how)
    with pytest.raises(InputError, match=r"query embedding.*zero"):
        rerank(query * np.float32(0), gallery, how)
    with pytest.raises(InputError, match=r"differ in width\n  got: 5 and 4"):
        rerank(query, gallery[:, :4], how)
    with pytest.raises(InputError, match="query embeddings are no table of floating-point numbers"):
        rerank(query[0], gallery, how)
