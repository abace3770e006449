"""Counts of a value, held to NumPy's own histogram of all numbers at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from reidkit.deploy.quantize.histogram import HALF, Histogram

NUMBERS = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 0.25, 1.0, -1.0, 2.0, -2.0, 3.0, 4.0, -4.0, 2.0**-149, -(2.0**-149), 2.0**127]),
)
BATCHES = st.lists(arrays(np.float32, st.integers(0, 12), elements=NUMBERS), min_size=1, max_size=5)


def counted(batches):
    seen = Histogram()
    for batch in batches:
        seen.add(np.asarray(batch, np.float32))
    return seen


def contents(seen):
    return seen.low, seen.high, seen.zeros, seen.reach, seen.counts.tolist()


@settings(max_examples=60, deadline=None)
@given(BATCHES, st.randoms())
def test_neither_order_nor_batches_make_a_difference(batches, random):
    whole = np.concatenate(batches)
    random.shuffle(batches)
    assert contents(counted(batches)) == contents(counted([whole])) == contents(counted([whole[::-1].reshape(-1, 1)]))


@settings(max_examples=60, deadline=None)
@given(BATCHES)
def test_it_is_the_histogram_of_all_numbers_that_are_not_zero(batches):
    whole = np.concatenate(batches).astype(np.float64)
    seen = counted(batches)
    assert (seen.low, seen.high) == (min(0.0, *whole, 0.0), max(0.0, *whole, 0.0))
    assert seen.zeros == (whole == 0).sum()
    peak = np.abs(whole).max(initial=0)
    assert seen.reach / 2 <= peak < seen.reach or peak == seen.reach == 0
    if peak:
        expected, _ = np.histogram(whole[whole != 0], bins=2 * HALF, range=(-seen.reach, seen.reach))
        np.testing.assert_array_equal(seen.counts, expected)
    assert seen.counts.sum() + seen.zeros == whole.size


def test_an_edge_that_becomes_another_bins_when_the_reach_doubles():
    assert contents(counted([[1.0], [2.0], [-4.0]])) == contents(counted([[-4.0], [1.0], [2.0]]))
    seen = counted([[1.0, -1.0]])
    assert seen.reach == 2
    assert np.flatnonzero(seen.counts).tolist() == [HALF // 2, HALF + HALF // 2]


def test_a_number_just_below_an_edge_stays_below_it():
    edge = np.float32(3 / 2048)
    seen = counted([[np.nextafter(edge, np.float32(0)), edge, 0.75]])
    assert np.flatnonzero(seen.counts).tolist() == [HALF + 2, HALF + 3, HALF + 1536]


def test_magnitudes_put_both_signs_together_from_0_outwards():
    seen = counted([[0.9, 0.9, -0.95, -1e-5, 0.0]])
    expected = np.zeros(HALF, np.int64)
    expected[[0, int(0.9 * HALF), int(0.95 * HALF)]] = 1, 2, 1
    np.testing.assert_array_equal(seen.magnitudes(), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_of_what_is_not_finite_nothing_is_counted(bad):
    seen = counted([[1.0, -3.0]])
    before = contents(seen)
    with pytest.raises(ValueError, match="not finite"):
        seen.add(np.array([5.0, bad, 0.0], np.float32))
    assert contents(seen) == before


def test_an_empty_batch_and_zeros_alone():
    assert contents(counted([[], [0.0, -0.0]])) == (0.0, 0.0, 2, 0.0, [0] * (2 * HALF))


def test_a_map_of_many_blocks_is_counted_whole():
    values = np.random.default_rng(0).normal(size=(5, 3, 99, 101)).astype(np.float32)
    values[values < -1] = 0
    seen = counted([values])
    expected, _ = np.histogram(values[values != 0], bins=2 * HALF, range=(-seen.reach, seen.reach))
    np.testing.assert_array_equal(seen.counts, expected)
    assert seen.zeros == (values == 0).sum() > 0
