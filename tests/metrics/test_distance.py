import numpy as np
import pytest

from reidkit.errors import InputError
from reidkit.metrics.distance import distance_matrix


def test_by_hand():
    query = np.array([[3.0, 4.0]])
    gallery = np.array([[3.0, 4.0], [-4.0, 3.0], [-6.0, -8.0], [0.0, 1.0]])
    np.testing.assert_allclose(distance_matrix(query, gallery), [[0, 1, 2, 1 - 0.8]], atol=1e-6)
    expected = [[0, np.sqrt(50), 15, np.sqrt(18)]]
    np.testing.assert_allclose(distance_matrix(query, gallery, "euclidean"), expected, rtol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_never_negative_for_equal_embeddings(metric):
    rows = np.random.default_rng(0).normal(size=(50, 2048)).astype(np.float32)
    distances = distance_matrix(rows, rows, metric)
    assert distances.min() >= 0
    assert np.diag(distances).max() < (1e-6 if metric == "cosine" else 0.1)


def test_float16_is_computed_in_float32():
    rows = np.full((2, 4096), 30.0, dtype=np.float16)  # its squares overflow float16
    assert np.isfinite(distance_matrix(rows, rows)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite(value):
    rows = np.ones((3, 4))
    rows[1, 2] = value
    with pytest.raises(
        InputError, match=r"1 of 3 gallery embeddings hold NaN or infinite values\n  got: the first in row 1"
    ):
        distance_matrix(np.ones((1, 4)), rows)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("value", [1e19, 1e20, 1e200])
def test_too_large_for_float32(metric, value):
    rows = np.ones((3, 4))
    rows[1:, 2] = -value
    with pytest.raises(InputError, match=r"2 of 3 query embeddings are too large[\s\S]*in row 1, with a value of 1e\+"):
        distance_matrix(rows, np.ones((1, 4)), metric)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_largest_are_compared(metric):
    rows = np.array([[9e18, 0.0], [-9e18, 0.0]])
    expected = 2 if metric == "cosine" else 1.8e19
    assert distance_matrix(rows, rows, metric)[0, 1] == pytest.approx(expected, rel=1e-6)


def test_zero_vector_has_no_cosine():
    rows = np.ones((3, 4))
    rows[2] = 0
    with pytest.raises(InputError, match=r"A query embedding has length zero.*\n  got: row 2"):
        distance_matrix(rows, np.ones((1, 4)))
    assert distance_matrix(rows, np.ones((1, 4)), "euclidean")[2, 0] == 2


def test_widths_differ():
    with pytest.raises(InputError, match="differ in width\n  got: 3 and 4"):
        distance_matrix(np.ones((2, 3)), np.ones((2, 4)))
