"""Ranges by each method, held to the raw numbers that the histogram no longer has."""

import math
from collections import defaultdict

import numpy as np
import pytest

from conditions import as_installed
from reidkit.calibration import Range
from reidkit.deploy.quantize.histogram import HALF, Histogram
from reidkit.deploy.quantize.ranges import range_of
from reidkit.errors import ConfigError

RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=40_000).astype(np.float32)
LONG_TAILED = (RNG.laplace(size=40_000) * RNG.choice([1, 6], 40_000, p=[0.98, 0.02])).astype(np.float32)
VALUES = {
    "both signs": LONG_TAILED,
    "behind a ReLU": np.maximum(NORMAL, 0),
    "negative": -np.abs(NORMAL) - np.float32(0.01),
    "uneven": np.where(NORMAL > 0, 5 * LONG_TAILED.clip(0), NORMAL).astype(np.float32),
}


def seen(values):
    histogram = Histogram()
    for part in np.array_split(np.asarray(values, np.float32), 3):
        histogram.add(part)
    return histogram


def width_of_bin(values):
    return 2 * float(np.abs(values).max()) / HALF


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())
def test_minmax_is_exact_and_holds_0(values):
    assert range_of(seen(values), "minmax") == Range(min(0.0, float(values.min())), max(0.0, float(values.max())))


@pytest.mark.parametrize("percentile", [60.0, 99.0, 99.9])
@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())
def test_a_percentile_is_numpys_within_a_bin(values, percentile):
    got = range_of(seen(values), "percentile", percentile=percentile)
    outside = 100 - percentile
    share = outside / 2 if values.min() < 0 < values.max() else outside
    for end, place, cut in ((got.low, share, min), (got.high, 100 - share, max)):
        # Between two neighbours of the sorted numbers any cut leaves as many outside.
        below, above = (np.percentile(values, place, method=method) for method in ("lower", "higher"))
        low, high = cut(0, below), cut(0, above)
        assert low - width_of_bin(values) <= end <= high + width_of_bin(values)


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())
def test_all_of_100_percent_is_minmax(values):
    assert range_of(seen(values), "percentile", percentile=100.0) == range_of(seen(values), "minmax")


def test_one_number_in_a_hundred_by_hand():
    values = np.arange(1, 101)  # 99 % of them are 1 to 99
    got = range_of(seen(values), "percentile", percentile=99.0)
    assert got.low == 0
    assert abs(got.high - 99.5) <= 0.5 + width_of_bin(values)


def test_what_is_nearly_always_0_keeps_all_of_its_range():
    values = np.zeros(100_000)
    values[7] = 3.5
    assert range_of(seen(values), "percentile", percentile=99.99) == Range(0.0, 3.5)
    values[8] = -0.25
    assert range_of(seen(values), "percentile", percentile=99.99) == Range(-0.25, 3.5)


def error_of_rounding(values, low, high):
    """Mean squared error of 255 equal steps from low to high, by rounding every number."""
    step = (high - low) / 255
    zero = np.rint(-low / step)
    rounded = (np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step
    return np.mean((rounded - values.astype(np.float64)) ** 2)


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())
def test_mse_is_what_rounding_every_number_finds(values):
    got = range_of(seen(values), "mse")
    peak, low, high = np.abs(values).max(), min(0, values.min()), max(0, values.max())
    errors = [error_of_rounding(values, max(low, -peak * c), min(high, peak * c)) for c in np.linspace(0.02, 1, 99)]
    assert error_of_rounding(values, got.low, got.high) <= 1.03 * min(errors)
    assert low <= got.low <= 0 <= got.high <= high


def test_mse_cuts_long_tails_and_no_short_ones():
    assert range_of(seen(np.append(np.tile(NORMAL, 20), 8)), "mse").high < 7
    even = RNG.uniform(0, 1, 10_000)
    assert range_of(seen(even), "mse").high == pytest.approx(even.max(), rel=0.01)


def divergence(values, reach, stop):
    """The divergence of a cut at a bin, number by number and without arrays."""
    bins = [min(int(abs(value) / reach * HALF), HALF - 1) for value in values if value != 0]
    told, inside = defaultdict(int), defaultdict(int)
    for place in bins:
        told[min(place, stop - 1)] += 1
        if place < stop:
            inside[place] += 1
    groups = defaultdict(list)
    for place in inside:
        groups[place * 128 // stop].append(place)
    coarse = {p: sum(inside[q] for q in group) / len(group) for group in groups.values() for p in group}
    if any(place not in coarse for place in told):
        return math.inf
    return sum(n / len(bins) * math.log(n / len(bins) / (coarse[p] / sum(coarse.values()))) for p, n in told.items())


def test_entropy_is_the_least_divergence():
    values = LONG_TAILED[:3000]
    histogram = seen(values)
    got = range_of(histogram, "entropy")
    stop = round(max(-got.low, got.high) / histogram.reach * HALF)
    last = int(np.abs(values).max() / histogram.reach * HALF) + 1
    least = min(divergence(values, histogram.reach, s) for s in [*range(128, last, 64), last])
    assert 128 <= stop < last
    assert divergence(values, histogram.reach, stop) <= least + 1e-9


def test_entropy_by_hand():
    # 128 bins of one number each are told exactly by 128 levels, and one far away has nowhere to go at any other cut.
    even = (np.arange(128) + 0.5) / 128
    assert range_of(seen([*even, 15.875]), "entropy") == Range(0.0, 15.875)
    # Where the far one comes down on a filled bin it costs: 129 / 128 against 1 for each.
    values = [*((np.arange(2048) + 0.5) / 2048), 0.99]
    assert range_of(seen(values), "entropy").high == pytest.approx(values[2047])


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile", "mse"])
def test_a_value_that_was_only_0(method):
    assert range_of(seen(np.zeros(9)), method) == Range(0.0, 0.0)
    assert range_of(Histogram(), method) == Range(0.0, 0.0)


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile", "mse"])
@pytest.mark.parametrize("value", [1.0, -1.0, 2.0**-149, -(2.0**127)])
def test_a_single_number_is_held(method, value):
    got = range_of(seen([value, 0.0]), method)
    assert min(value, 0.0) <= got.low <= 0 <= got.high <= max(value, 0.0)
    assert (got.low or got.high) == pytest.approx(value, rel=2 / HALF)


@pytest.mark.parametrize("percentile", [50.0, 0.0, -1.0, 100.5, math.nan])
def test_a_percentile_that_is_none(percentile):
    with pytest.raises(
        ConfigError, match=r"The percentile is out of range\n  got: .*\n  expected: above 50, up to 100"
    ):
        range_of(seen([1.0]), "percentile", percentile=percentile)


def test_ranges_of_training_come_from_training():
    with as_installed(), pytest.raises(ConfigError, match="come from training\n  to do: choose another method"):
        range_of(seen([1.0]), "qat")
