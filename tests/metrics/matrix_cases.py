"""Small matrices of distances with ties, junk, distractors and excluded pairs, and the one walk over them."""

import numpy as np
from hypothesis import strategies as st

from reidkit.metrics.distance import MEMORY, given
from reidkit.metrics.junk import Exclusion, Labels
from reidkit.metrics.ranking import Relevances, walk


@st.composite
def matrix_cases(draw):
    """Distances, labels of queries and gallery, and pairs (query, gallery row) that are excluded.

    Sizes are drawn, and shrink; what fills them comes from a seed, which is many times as fast.
    """
    queries, gallery, distances = draw(st.integers(1, 5)), draw(st.integers(1, 16)), draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))

    def labels(n, least_pid):
        return Labels(rng.integers(least_pid, 3, n), rng.integers(0, 3, n))

    matrix = rng.integers(0, distances, (queries, gallery)).astype(np.float32)
    excluded = {(int(rng.integers(queries)), int(rng.integers(gallery))) for _ in range(draw(st.integers(0, 6)))}
    return matrix, labels(queries, 0), labels(gallery, -1), excluded


class Unchanged:
    """A scorer that comes last, and sees whether those before it left the distances alone."""

    bytes_needed = 0

    def __init__(self, matrix):
        self._matrix = matrix

    def add(self, query, distances, found):
        np.testing.assert_array_equal(distances, self._matrix[query])


def score(scorer, matrix, query, gallery, *, excluded=(), junk=True, rows=None):
    """Shows all queries to the scorer, and gives it back.

    Args:
        rows: queries for which the limit of memory just suffices; None sets no limit.
    """
    exclusion = Exclusion(
        matrix.shape, lambda row: np.array(sorted(j for i, j in excluded if i == row), dtype=np.int64)
    )
    relevances = Relevances(query, gallery, junk=junk, exclude=[exclusion])
    # 64 bytes for each gallery crop are a scorer's to look at a query, and 4 are its distance.
    memory = MEMORY if rows is None else scorer.bytes_needed + (64 + 4 * rows) * matrix.shape[1]
    walk(given(matrix), relevances, [scorer, Unchanged(matrix)], memory=memory)
    return scorer


def is_left_out(i, j, query, gallery, excluded=(), *, junk=True):
    """Whether a pair is ranked nowhere, told from the definition."""
    seen_by_itself = query.pids[i] == gallery.pids[j] and query.camids[i] == gallery.camids[j]
    return (junk and seen_by_itself) or (i, j) in excluded
