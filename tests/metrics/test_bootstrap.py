"""Against simulated data whose truth is known, permutations by hand, and plain loops."""

import itertools
import random
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reidkit.errors import InputError
from reidkit.metrics.bootstrap import Interval, mean_interval, paired_difference


def plain_p_value(difference):
    """All signs, one by one."""
    seen = abs(sum(difference))
    flipped = [
        abs(sum(sign * value for sign, value in zip(signs, difference, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(difference))
    ]
    return sum(value >= seen - 1e-9 for value in flipped) / len(flipped)


def p_value(difference, **options):
    difference = np.array(difference, dtype=float)
    return paired_difference(np.zeros(len(difference)), difference, **options).p_value


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_the_interval_holds_the_true_mean_as_often_as_it_says(level):
    rng = np.random.default_rng(0)
    trials = 500
    # Average precisions look like this: most near 1, a tail towards 0. The mean of Beta(2, 0.5) is 0.8.
    held = 0
    for trial in range(trials):
        low, high = mean_interval(rng.beta(2, 0.5, 200), level=level, samples=300, seed=trial)
        held += low <= 0.8 <= high
    assert held / trials == pytest.approx(level, abs=4 * (level * (1 - level) / trials) ** 0.5)


def test_the_interval_equals_a_plain_bootstrap():
    values = np.random.default_rng(1).beta(2, 0.5, 50)
    source = random.Random(0)
    means = [statistics.fmean(source.choices(values.tolist(), k=50)) for _ in range(4000)]
    cuts = statistics.quantiles(means, n=40)  # 2.5 % each
    low, high = mean_interval(values, samples=4000)
    deviation = statistics.stdev(means)
    assert low == pytest.approx(cuts[0], abs=0.15 * deviation)
    assert high == pytest.approx(cuts[-1], abs=0.15 * deviation)


def test_the_interval_shrinks_with_the_level_and_with_the_root_of_the_number():
    values = np.random.default_rng(2).normal(size=400)
    widths = [np.diff(mean_interval(values, level=level))[0] for level in (0.99, 0.95, 0.5)]
    assert widths[0] > widths[1] > widths[2] > 0
    # Of a normal mean: 2 x 1.96 standard errors.
    assert widths[1] == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_blocks_of_samples_are_all_filled(monkeypatch):
    monkeypatch.setattr("reidkit.metrics.bootstrap._BLOCK", 100)
    values = np.random.default_rng(3).random(30)
    assert mean_interval(values, samples=2000, seed=5) == pytest.approx(mean_interval(values, seed=6), abs=0.02)
    low, high = mean_interval(values + 100, samples=7)
    assert 100 < low < high < 101


def test_one_query_or_equal_ones_give_no_width():
    assert mean_interval(np.array([0.3])) == Interval(0.3, 0.3)
    values = np.full(17, 0.1)
    assert mean_interval(values) == Interval(values.mean(), values.mean())


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        ([1, 1, 1], 2 / 8),  # only all + and all - reach 3
        ([3, 1, -1], 6 / 8),  # 5, 3, 3, 1 and their negatives
        ([0.1, 0.2, 0.3], 2 / 8),  # in float64 the sum depends on the order
        ([0.1, 0.2, -0.3], 1),
        ([2], 1),
        ([0, 5, 0, 5, 0], 2 / 4),  # what does not differ has no sign
        ([0, 0], 1),
        ([0] * 50 + [1, 1, 1], 2 / 8),  # so few differ that it is exact
        ([1] * 12, 2 / 4096),
    ],
)
def test_permutations_by_hand(difference, expected):
    assert p_value(difference) == expected


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8))
def test_few_queries_are_permuted_exactly(tenths):
    difference = [value / 10 for value in tenths]
    assert p_value(difference) == plain_p_value(difference)


def test_many_queries_are_permuted_at_random():
    difference = [0.3, 0.1, 0.4, -0.1, 0.5, -0.9, 0.2, 0.6, -0.5, 0.3, 0.5, -0.8, 0.9, 0.7]
    expected = plain_p_value(difference)
    assert 0.05 < expected < 0.5
    assert p_value(difference, samples=20_000) == pytest.approx(expected, abs=4 * (expected / 20_000) ** 0.5)


def test_the_p_value_is_never_zero():
    assert p_value(np.linspace(0.5, 1, 200), samples=999) == 1 / 1000


def test_models_that_are_alike_are_rarely_told_apart():
    rng = np.random.default_rng(4)
    trials = 400
    values = [p_value(rng.normal(size=40), samples=199, seed=trial) for trial in range(trials)]
    for level in (0.05, 0.2, 0.5):
        share = np.mean(np.array(values) <= level)
        assert share == pytest.approx(level, abs=4 * (level * (1 - level) / trials) ** 0.5)


def test_a_paired_difference():
    rng = np.random.default_rng(5)
    a = rng.random(300)
    b = np.clip(a + rng.normal(0.02, 0.05, 300), 0, 1)
    b[:40] = a[:40]
    found = paired_difference(a, b)
    assert found.difference == pytest.approx(b.mean() - a.mean())
    assert found.interval.low < found.difference < found.interval.high
    assert found.interval == mean_interval(b - a)
    assert (found.gained, found.lost) == ((b > a).sum(), (b < a).sum())
    assert found.p_value < 0.01
    # Unpaired, the same means would not differ.
    assert paired_difference(a, rng.permutation(b)).p_value > 0.05


def test_exchanging_the_two_turns_the_signs_alone():
    rng = np.random.default_rng(6)
    for n in (8, 60):
        a, b = rng.random(n), rng.random(n)
        one, other = paired_difference(a, b), paired_difference(b, a)
        assert (other.difference, other.p_value) == (-one.difference, one.p_value)
        assert (other.gained, other.lost) == (one.lost, one.gained)
        assert other.interval == pytest.approx((-one.interval.high, -one.interval.low))


def test_the_seed_alone_decides():
    rng = np.random.default_rng(7)
    a, b = rng.random(500), rng.random(500)
    assert paired_difference(a, b) == paired_difference(a, b)
    assert paired_difference(a, b) != paired_difference(a, b, seed=1)
    assert mean_interval(a) == mean_interval(a)
    assert mean_interval(a) != mean_interval(a, seed=1)


def test_equal_models_do_not_differ():
    a = np.random.default_rng(8).random(50)
    found = paired_difference(a, a.copy())
    assert (found.difference, found.interval, found.p_value, found.gained, found.lost) == (0, (0, 0), 1, 0, 0)


def test_what_differs_by_rounding_does_not_differ():
    a = np.random.default_rng(9).random(50)
    b = a * (1 + np.finfo(float).eps)
    b[:3] += 0.01
    found = paired_difference(a, b)
    assert (found.gained, found.lost, found.p_value) == (3, 0, 2 / 8)
    assert paired_difference(1e6 * a, 1e6 * b).p_value == 2 / 8


ONE, BAD = np.ones(1), np.array([0.5, np.nan, np.inf])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval(np.empty(0)), "There are no values, so nothing can be said"),
        (
            lambda: mean_interval(BAD),
            r"2 of 3 values are NaN or infinite\n  got: the first in row 1[^$]*invalid queries",
        ),
        (lambda: mean_interval(ONE, level=1.0), r"level of a confidence interval[^$]*got: 1.0"),
        (lambda: mean_interval(ONE, level=float("nan")), r"level of a confidence interval[^$]*got: nan"),
        (lambda: mean_interval(ONE, samples=0), r"samples must be at least 1\n  got: 0"),
        (
            lambda: paired_difference(ONE, BAD),
            r"differ in number\n  got: 1 and 3\n  expected: those of the same queries",
        ),
        (lambda: paired_difference(BAD, np.ones(3)), "2 of 3 values of a are NaN"),
        (lambda: paired_difference(np.ones(3), BAD), "2 of 3 values of b are NaN"),
        (lambda: paired_difference(np.empty(0), np.empty(0)), "There are no values of a"),
        (lambda: paired_difference(ONE, ONE, level=0.0), "level of a confidence interval"),
        (lambda: paired_difference(ONE, ONE, samples=0), "samples must be at least 1"),
        (lambda: mean_interval(ONE, seed=-1), r"seed of random numbers must be 0 or above\n  got: -1"),
        (lambda: paired_difference(ONE, ONE, seed=-1), r"seed of random numbers must be 0 or above\n  got: -1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
