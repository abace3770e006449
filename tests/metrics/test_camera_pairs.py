"""Against a plain loop that keeps one camera at a time, and values by hand."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from matrix_cases import is_left_out, matrix_cases, score

from reidkit.errors import InputError
from reidkit.metrics.camera_pairs import CameraPairs, CameraPairScorer
from reidkit.metrics.junk import Labels


def plain(matrix, query, gallery, excluded=(), *, junk=True):
    """Average precisions by (query camera, gallery camera)."""
    found = {}
    for i, row in enumerate(matrix):
        for camid in set(gallery.camids.tolist()):
            items = sorted(
                (distance, bool(query.pids[i] == gallery.pids[j]))  # at equal distance the wrong one comes first
                for j, distance in enumerate(row)
                if gallery.camids[j] == camid and not is_left_out(i, j, query, gallery, excluded, junk=junk)
            )
            ranks = [rank for rank, (_, same) in enumerate(items, 1) if same]
            if ranks:
                precision = np.mean([n / rank for n, rank in enumerate(ranks, 1)])
                found.setdefault((int(query.camids[i]), camid), []).append(precision)
    return found


def camera_pairs(matrix, query, gallery, **options):
    return score(CameraPairScorer(query, gallery), matrix, query, gallery, **options).camera_pairs()


def cells(found):
    """MAP and number of queries by (query camera, gallery camera), of the pairs that have any."""
    return {
        (cell["query_camera"], cell["gallery_camera"]): (pytest.approx(cell["mAP"], rel=1e-12), cell["queries"])
        for cell in found.as_list({})
    }


@pytest.mark.parametrize("junk", [True, False])
@settings(max_examples=60, deadline=None)
@given(case=matrix_cases())
def test_equals_the_plain_loop(junk, case):
    matrix, query, gallery, excluded = case
    found = camera_pairs(matrix, query, gallery, excluded=excluded, junk=junk)
    expected = plain(matrix, query, gallery, excluded, junk=junk)
    assert cells(found) == {
        (str(a), str(b)): (np.mean(precisions), len(precisions)) for (a, b), precisions in expected.items()
    }
    assert found.query_cameras.tolist() == sorted(set(query.camids.tolist()))
    assert found.gallery_cameras.tolist() == sorted(set(gallery.camids.tolist()))
    np.testing.assert_array_equal(np.isnan(found.mean_ap), found.queries == 0)


def test_by_hand():
    # Camera 1: wrong, match, match at one distance with a wrong one. Camera 2: a distractor, then a match.
    # Camera 0 is the query's own: junk. Camera 3 has no match.
    gallery = Labels(np.array([5, 9, 5, 5, 9, -1, 5, 9]), np.array([0, 1, 1, 1, 1, 2, 2, 3]))
    matrix = np.array([[0, 1, 2, 3, 3, 1, 2, 0]], dtype=np.float32)
    found = camera_pairs(matrix, Labels(np.array([5]), np.array([0])), gallery)
    assert found.queries.tolist() == [[0, 1, 1, 0]]
    np.testing.assert_allclose(found.mean_ap, [[np.nan, (1 / 2 + 2 / 4) / 2, 1 / 2, np.nan]])


def test_order_and_blocks_change_nothing():
    rng = np.random.default_rng(0)
    query, gallery = (Labels(rng.integers(0, 8, n), rng.integers(0, 4, n)) for n in (40, 200))
    matrix = rng.integers(0, 50, (40, 200)).astype(np.float32)
    order = rng.permutation(200)
    shuffled = Labels(gallery.pids[order], gallery.camids[order])
    whole = camera_pairs(matrix, query, gallery)
    for other in (
        camera_pairs(matrix, query, gallery, rows=3),
        camera_pairs(matrix[:, order], query, shuffled),
        camera_pairs(np.exp(matrix / 10) - 9, query, gallery),
    ):
        np.testing.assert_array_equal(other.mean_ap, whole.mean_ap)
        np.testing.assert_array_equal(other.queries, whole.queries)


def test_plain_values_with_the_names_of_the_data_set():
    found = CameraPairs(
        np.array([0, 4]), np.array([4, 7]), np.array([[0.5, np.nan], [1, 0.25]]), np.array([[3, 0], [1, 2]])
    )
    rows = found.as_list({0: "c001", 4: "c005"})
    assert json.loads(json.dumps(rows)) == [
        {"query_camera": "c001", "gallery_camera": "c005", "mAP": 0.5, "queries": 3},
        {"query_camera": "c005", "gallery_camera": "c005", "mAP": 1.0, "queries": 1},
        {"query_camera": "c005", "gallery_camera": "7", "mAP": 0.25, "queries": 2},
    ]


@pytest.mark.parametrize("name", ["query", "gallery"])
def test_an_unknown_camera_is_refused(name):
    labels = {"query": Labels(np.array([0]), np.array([0])), "gallery": Labels(np.array([0]), np.array([1]))}
    labels[name] = Labels(np.array([0, 0, 0]), np.array([0, -1, -1]))
    with pytest.raises(InputError, match=rf"2 of 3 {name} crops have no known camera[^$]*row 1"):
        CameraPairScorer(**labels)
