"""Against values by hand and the definitions in float64."""

import subprocess
import sys

import numpy as np
import pytest

from reidkit.errors import InputError
from reidkit.metrics.distance import compare, distance_blocks, distance_matrix, given, row_blocks
from reidkit.metrics.prepared import prepare

METRICS = ("cosine", "euclidean")


def defined(query, gallery, metric):
    """Both metrics as they are told, in float64."""
    query, gallery = query.astype(np.float64), gallery.astype(np.float64)
    if metric == "euclidean":
        return np.linalg.norm(query[:, None] - gallery[None], axis=-1)
    query, gallery = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (query, gallery))
    return 1 - query @ gallery.T


def random_rows(count, dim, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(dtype)


def test_by_hand():
    query = np.array([[3.0, 4.0]])
    gallery = np.array([[3.0, 4.0], [-4.0, 3.0], [-6.0, -8.0], [0.0, 1.0]])
    np.testing.assert_allclose(distance_matrix(query, gallery), [[0, 1, 2, 1 - 0.8]], atol=1e-6)
    expected = [[0, np.sqrt(50), 15, np.sqrt(18)]]
    np.testing.assert_allclose(distance_matrix(query, gallery, "euclidean"), expected, rtol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("types", [(a, b) for a in ("f2", "f4", "f8") for b in ("f2", "f4", "f8")], ids="-".join)
def test_every_mixture_of_types_equals_the_definition(metric, types):
    query, gallery = random_rows(7, 33, types[0]), random_rows(50, 33, types[1], seed=1)
    found = distance_matrix(query, gallery, metric)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, defined(query, gallery, metric), atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_a_converted_gallery_in_parts_and_a_column_major_one(metric, monkeypatch):
    query, gallery = random_rows(5, 8), random_rows(101, 8, np.float16, seed=1)
    expected = defined(query, gallery, metric)
    monkeypatch.setattr("reidkit.metrics.prepared._CHUNK", 4 * 8 * 10)
    np.testing.assert_allclose(distance_matrix(query, gallery, metric), expected, atol=1e-5)
    columns = np.asfortranarray(gallery.astype(np.float32))
    np.testing.assert_allclose(distance_matrix(query, columns, metric), expected, atol=1e-5)


def test_float32_is_not_copied_and_not_changed():
    rows = random_rows(10, 4)
    before = rows.copy()
    assert prepare(rows, "cosine", "query").values is rows
    distance_matrix(rows, rows)
    np.testing.assert_array_equal(rows, before)


@pytest.mark.parametrize("metric", METRICS)
def test_never_negative_for_equal_embeddings(metric):
    rows = random_rows(50, 2048)
    distances = distance_matrix(rows, rows, metric)
    assert distances.min() >= 0
    assert np.diag(distances).max() < (1e-6 if metric == "cosine" else 0.1)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_equal_gallery_embeddings_are_equally_far(metric, dtype):
    # A bare matrix product rounds some of these columns differently: OpenBLAS does, for most single queries.
    queries, other = random_rows(50, 128, dtype), random_rows(2, 128, dtype, seed=1)
    gallery = np.concatenate([np.repeat(other[:1], 315, axis=0), other[1:], other[:1], other[1:]])
    distances = compare(queries, gallery, metric)
    for query in range(50):
        row = distances.block(slice(query, query + 1))[0]
        assert np.ptp(np.delete(row, [315, 317])) == np.ptp(row[[315, 317]]) == 0
    np.testing.assert_allclose(distances.block(slice(0, 50)), defined(queries, gallery, metric), atol=1e-4)


def test_rows_of_one_sum_are_not_taken_for_equal():
    # The bits of (1, 2) and (2, 1) have one sum.
    found = distance_matrix(np.array([[1.0, 0.0]]), np.array([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]]), "euclidean")
    np.testing.assert_allclose(found, [[2, np.sqrt(2), 2]], rtol=1e-6)


def test_float16_is_computed_in_float32():
    rows = np.full((2, 4096), 30.0, dtype=np.float16)  # its squares overflow float16
    assert np.isfinite(distance_matrix(rows, rows)).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite(value, dtype):
    rows = np.ones((3, 4), dtype)
    rows[1, 2] = value
    message = r"1 of 3 gallery embeddings hold NaN or infinite values\n  got: the first in row 1"
    for metric in METRICS:
        with pytest.raises(InputError, match=message):
            compare(np.ones((1, 4)), rows, metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [1e19, 1e20, 1e200])
def test_too_large_for_float32(metric, value):
    rows = np.ones((3, 4))
    rows[1:, 2] = -value
    message = r"2 of 3 query embeddings are too large[\s\S]*in row 1, with a value of 1e\+[\s\S]*of 8e\+18 at most"
    with pytest.raises(InputError, match=message):
        compare(rows, np.ones((1, 4)), metric)


@pytest.mark.parametrize("metric", METRICS)
def test_the_largest_are_compared(metric):
    rows = np.array([[8e18, 0.0], [-8e18, 0.0]])
    expected = 2 if metric == "cosine" else 1.6e19
    assert distance_matrix(rows, rows, metric)[0, 1] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("length", [1e-20, 2e-30])
def test_short_vectors_have_a_cosine(length):
    query, gallery = random_rows(4, 256), random_rows(30, 256, seed=1)
    short = gallery * np.float32(length)
    np.testing.assert_allclose(distance_matrix(query, short), defined(query, gallery, "cosine"), atol=2e-6)
    np.testing.assert_allclose(distance_matrix(short, query), defined(gallery, query, "cosine"), atol=2e-6)


@pytest.mark.parametrize(("metric", "least"), [("cosine", "1e-30"), ("euclidean", "1e-15")])
@pytest.mark.parametrize(
    ("value", "dtype"), [(1e-38, "f4"), (1e-45, "f4"), (4e-31, "f8"), (1e-60, "f8"), (1e-200, "f8")]
)
def test_too_short_for_float32_but_not_zero(metric, least, value, dtype):
    rows = np.ones((3, 4), dtype=dtype)
    rows[1] = value
    length = f"{2 * float(rows[1, 0]):.3g}"
    message = (
        rf"A gallery embedding is too short[^\n]*{metric}\)\n  got: row 1, of length {length}\n[^$]*{least} at least"
    )
    with pytest.raises(InputError, match=message):
        compare(np.ones((1, 4)), rows, metric)


def test_the_shortest_have_euclidean_distances():
    query, gallery = random_rows(4, 8) * np.float32(1e-15), random_rows(30, 8, seed=1) * np.float32(1e-15)
    gallery[3] = 0  # which is a place like any other
    expected = defined(query * 1e15, gallery * 1e15, "euclidean")
    np.testing.assert_allclose(distance_matrix(query, gallery, "euclidean") * 1e15, expected, rtol=1e-4)


LAYOUTS = {
    "big-endian": lambda rows: rows.astype(rows.dtype.newbyteorder(">")),
    "reversed": lambda rows: rows[::-1].copy()[::-1],
    "column-major": np.asfortranarray,
    "every other column": lambda rows: np.repeat(rows, 2, axis=1)[:, ::2],
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_how_they_lie_in_memory_changes_nothing(layout, dtype, metric):
    query, gallery = random_rows(5, 12, dtype), random_rows(40, 12, dtype, seed=1)
    gallery[7] = gallery[30]
    laid = LAYOUTS[layout](query), LAYOUTS[layout](gallery)
    for rows in laid:
        rows.flags.writeable = False
    np.testing.assert_array_equal(distance_matrix(*laid, metric), distance_matrix(query, gallery, metric))


@pytest.mark.parametrize("offset", [0, 3, 30])
def test_euclidean_squares_are_as_exact_as_the_docstring_says(offset):
    query, gallery = (random_rows(count, 512, seed=count) + np.float32(offset) for count in (40, 500))
    found = distance_matrix(query, gallery, "euclidean").astype(np.float64)
    squared_length = (query.astype(np.float64) ** 2).sum(axis=1)[:, None]
    assert (np.abs(found**2 - defined(query, gallery, "euclidean") ** 2) / squared_length).max() < 2e-6


def test_zero_vector_has_no_cosine():
    rows = np.ones((3, 4))
    rows[2] = 0
    with pytest.raises(InputError, match=r"A query embedding has length zero.*\n  got: row 2[\s\S]*use the Euclidean"):
        compare(rows, np.ones((1, 4)))
    assert distance_matrix(rows, np.ones((1, 4)), "euclidean")[2, 0] == 2


def test_widths_differ():
    with pytest.raises(InputError, match="differ in width\n  got: 3 and 4"):
        compare(np.ones((2, 3)), np.ones((2, 4)))


@pytest.mark.parametrize(
    ("rows", "got"),
    [
        (np.ones((2, 3), dtype=int), r"int64 \(2, 3\)"),
        (np.ones(3), r"float64 \(3,\)"),
        (np.ones((2, 0)), r"float64 \(2, 0\)"),
        (np.array([["a"]]), r"<U1 \(1, 1\)"),
    ],
)
def test_no_table_of_numbers(rows, got):
    with pytest.raises(InputError, match=rf"query embeddings are no table of floating-point numbers\n  got: {got}"):
        compare(rows, np.ones((1, 3)))


def test_wrong_types_have_a_message():
    # In a process of its own: the type checks that run under pytest would be first.
    code = """
import numpy
from reidkit.errors import ReidkitError
from reidkit.metrics.distance import compare, given
from reidkit.metrics.junk import Labels

one = numpy.ones((1, 1))
for call in (
    lambda: compare(one, one, "euclidian"),
    lambda: compare([[1.0]], one),
    lambda: given([[1.0]]),
    lambda: Labels([1], numpy.array([1])),
):
    try:
        call()
    except ReidkitError as error:
        print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for message in (
        "Unknown metric 'euclidian'",
        "did you mean 'euclidean'?",
        "The query embeddings are no table of floating-point numbers\n  got: list, no array",
        "The distances are no table of floating-point numbers\n  got: list, no array",
        "The identities are no array\n  got: list",
    ):
        assert message in ran.stdout


def test_more_than_two_to_the_31_pairs_are_refused_before_anything_is_allocated():
    rows = np.broadcast_to(np.float32(1), (1 << 31, 512))  # would be 4 TiB if it were copied
    with pytest.raises(InputError, match=r"too large to hold\n  got: 2 x 2147483648 = 4294967296 pairs, 16.0 GiB"):
        distance_matrix(rows[:2], rows)


def test_blocks_keep_within_the_limit():
    distances = compare(random_rows(10, 3), random_rows(20, 3))
    each = distances.bytes_per_query
    assert list(row_blocks(distances, memory=4 * each)) == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert list(row_blocks(distances, memory=4 * each, bytes_besides=1)) == [
        slice(start, min(start + 3, 10)) for start in (0, 3, 6, 9)
    ]
    assert list(row_blocks(distances, memory=each)) == [slice(row, row + 1) for row in range(10)]


@pytest.mark.parametrize("made", [compare(random_rows(10, 3), random_rows(20, 3)), given(random_rows(10, 20))])
def test_blocks_one_after_the_other_are_all_of_it(made):
    whole = made.block(slice(0, 10))
    seen = []
    for rows, block in distance_blocks(made, memory=3 * made.bytes_per_query):
        np.testing.assert_allclose(block, whole[rows], atol=1e-6)
        seen += range(10)[rows]
        block[:] = np.nan  # whose array is used again
    assert seen == list(range(10))


def test_a_limit_below_one_query():
    for dtype, least in ((np.float32, 4 * (20 + 6)), (np.float16, 4 * (20 + 6) + 4 * 60)):
        distances = compare(random_rows(10, 3), random_rows(20, 3, dtype))
        message = rf"one query with a gallery of 20 crops\n  got: {least - 1} bytes\n  expected: {least} bytes at least"
        with pytest.raises(InputError, match=message):
            list(row_blocks(distances, memory=least - 1))
        assert len(list(row_blocks(distances, memory=least))) == 10


def test_given_distances_are_handed_on_as_a_copy():
    matrix = np.array([[1.0, -2.0], [3.0, 4.0]], dtype=np.float32)
    distances = given(matrix)
    distances.block(slice(0, 1))[:] = 0
    assert distances.block(slice(0, 2)).tolist() == matrix.tolist() == [[1.0, -2.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.array([[1.0], [np.nan]]), "NaN or infinite values\n  got: the first in row 1"),
        (np.array([[np.inf]]), "NaN or infinite values"),
        (np.array([[1e39]]), "finite in float32"),
        (np.ones((2, 2), dtype=int), r"no table of floating-point numbers\n  got: int64 \(2, 2\)"),
        (np.ones(2), r"no table of floating-point numbers\n  got: float64 \(2,\)"),
        (np.ones((0, 2)), r"\(0, 2\)\n  expected: .* at least one each"),
    ],
)
def test_given_distances_that_are_none(matrix, message):
    with pytest.raises(InputError, match=message):
        given(matrix)
