"""How far chance reaches: confidence intervals of a mean over queries, and of the difference of two models.

The queries of a data set are taken for independent draws of all that could be asked. Several queries of one identity
are not quite independent, so the intervals are a little too narrow and the p values a little too small. What another
data set, another training or another draw of a gallery would change is not in them.

Axes: `n` queries.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from reidkit.errors import InputError

_BLOCK = 1 << 18
"""Values that are resampled at a time; fixed, so that a seed always gives the same samples."""

_FEW = 12
"""So many differing queries or fewer: all their signs are tried, 4,096 ways at most."""

_ROUNDING = 1e-12
"""By this share two numbers of one definition may differ in float64: values, or sums in another order."""


class Interval(NamedTuple):
    """The ends of a confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """What became of a measure, query by query, from a to b.

    Attributes:
        difference: mean of b minus mean of a.
        interval: confidence interval of the difference.
        p_value: of no difference: how often one as large, in either direction, would come about by chance.
        gained: number of queries that are higher in b.
        lost: number of queries that are lower in b.
    """

    difference: float
    interval: Interval
    p_value: float
    gained: int
    lost: int


def mean_interval(
    values: Float64[np.ndarray, " n"], *, level: float = 0.95, samples: int = 2000, seed: int = 0
) -> Interval:
    """Confidence interval of the mean over queries: a percentile bootstrap, as good as there are many queries.

    Of one query nothing can be said: low and high are its value. Memory: about 8 MiB, or 24 bytes for each of more than
    262,144 queries.

    Args:
        values: of each query.
        level: share of such intervals that hold the true mean, 0 to 1, both excluded.
        samples: how often the queries are resampled.
        seed: of the random numbers.

    Raises:
        InputError: no values, NaN or infinite ones, a level that is none, no samples, or a negative seed.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    _check_values(values, "values")
    _check_options(level, samples, seed)
    rng = np.random.default_rng(seed)
    means = np.empty(samples)
    for block in _blocks(samples, len(values)):
        rows = rng.integers(0, len(values), (block.stop - block.start, len(values)), dtype=np.int64)
        means[block] = values[rows].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def paired_difference(
    a: Float64[np.ndarray, " n"],
    b: Float64[np.ndarray, " m"],
    *,
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> PairedDifference:
    """Whether b differs from a beyond chance, on the same queries.

    The p value is that of a two-sided permutation test: were the two alike, each query could as well have had its
    values the other way round, so the signs of the differences are drawn at random. It is (count + 1) / (samples + 1),
    where count of the draws have a mean as far from 0 as the one seen, or farther; so it is never below
    1 / (samples + 1). Where 12 queries or fewer differ, all signs are tried, and it is exact.

    Values that differ by rounding (1e-12 of themselves) are equal.

    Args:
        a: of each query.
        b: of the same queries, in the same order.
        level: of the interval of the difference; see `mean_interval`.
        samples: how often the queries are resampled, and signs drawn.
        seed: of the random numbers.

    Raises:
        InputError: as `mean_interval`, or the numbers of values differ.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 15; Phipson and Smyth,
    "Permutation p-values should never be zero", 2010.
    """
    if len(a) != len(b):
        raise InputError(
            "The values to compare differ in number", got=f"{len(a)} and {len(b)}", expected="those of the same queries"
        )
    _check_values(a, "values of a")
    _check_values(b, "values of b")
    difference = np.where(np.isclose(a, b, rtol=_ROUNDING, atol=0), 0, b - a)
    return PairedDifference(
        difference=float(difference.mean()),
        interval=mean_interval(difference, level=level, samples=samples, seed=seed),
        p_value=_sign_flip_p_value(difference[difference != 0], samples, np.random.default_rng([seed, 1])),
        gained=int(np.count_nonzero(difference > 0)),
        lost=int(np.count_nonzero(difference < 0)),
    )


def _sign_flip_p_value(difference: Float64[np.ndarray, " n"], samples: int, rng: np.random.Generator) -> float:
    """Two-sided; `difference` without zeros, whose signs change nothing."""
    count = len(difference)
    # A sum that is equal but for rounding is as far from 0.
    seen = abs(difference.sum()) - _ROUNDING * np.abs(difference).sum()
    if count <= _FEW:
        ways = np.arange(1 << count)[:, None] >> np.arange(count) & 1
        return float(np.mean(np.abs((2 * ways - 1) @ difference) >= seen))
    reached = 0
    for block in _blocks(samples, count):
        size = (block.stop - block.start, count)
        bits = np.unpackbits(np.frombuffer(rng.bytes(-(-size[0] * count // 8)), dtype=np.uint8), count=size[0] * count)
        signs = 2.0 * bits.reshape(size) - 1
        reached += int(np.count_nonzero(np.abs(signs @ difference) >= seen))
    return (reached + 1) / (samples + 1)


def _blocks(samples: int, count: int) -> list[slice]:
    """Cuts the samples so that a block of them has few values."""
    rows = max(1, _BLOCK // count)
    return [slice(start, min(start + rows, samples)) for start in range(0, samples, rows)]


def _check_values(values: Float64[np.ndarray, " n"], name: str) -> None:
    if not len(values):
        raise InputError(f"There are no {name}, so nothing can be said of their mean", expected="one query at least")
    finite = np.isfinite(values)
    if not finite.all():
        raise InputError(
            f"{int((~finite).sum())} of {len(values)} {name} are NaN or infinite",
            got=f"the first in row {int(np.argmin(finite))}",
            expected="finite numbers",
            fix="leave invalid queries out",
        )


def _check_options(level: float, samples: int, seed: int) -> None:
    if not 0 < level < 1:
        raise InputError("The level of a confidence interval is a share", got=level, expected="above 0 and below 1")
    if samples < 1:
        raise InputError("The number of samples must be at least 1", got=samples)
    if seed < 0:
        raise InputError("The seed of random numbers must be 0 or above", got=seed)
