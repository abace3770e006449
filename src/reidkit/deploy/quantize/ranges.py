"""From what a value was seen to be to the range that is worth a grid."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64

from reidkit.calibration import Method, Range
from reidkit.deploy.quantize.grids import LEVELS
from reidkit.deploy.quantize.histogram import HALF, Histogram
from reidkit.errors import ConfigError

PERCENTILE = 99.99
"""Of the values that are inside, where nobody says."""

_SIGNED_LEVELS = 128  # of the entropy method, as its authors have it
_CUTS = 512  # about as many magnitudes that its divergence is worked out for
_CANDIDATES = 128  # ranges that the mean squared error is worked out for
_LEAST_SHARE = 0.05  # of the peak, that a range may be cut down to


def range_of(seen: Histogram, method: Method, *, percentile: float = PERCENTILE) -> Range:
    """The range of a value.

    Args:
        seen: the value.
        method: "minmax" takes all of it. "percentile" leaves the same share out at either end, or all of it at the one
            end where a value has one sign; of what is so rarely not 0 that nothing would stay, it takes all. "entropy"
            and "mse" cut at a magnitude: "entropy" where the Kullback-Leibler divergence between the distribution and
            its rounded form is least, "mse" where the mean squared error of rounding and cutting is.
        percentile: share that stays inside, percent.

    Raises:
        ConfigError: the percentile is not above 50 and up to 100, or the method is "qat", which needs training.

    Source:
        entropy: S. Migacz, 8-bit inference with TensorRT, GTC 2017; zeros are left out, as every grid holds them.
    """
    check_percentile(percentile)
    if method == "qat":
        raise ConfigError("Ranges of quantisation-aware training come from training", fix="choose another method")
    if seen.low == seen.high:
        return Range(seen.low, seen.high)
    if method == "minmax":
        return Range(seen.low, seen.high)
    if method == "percentile":
        return _percentile(seen, percentile)
    cut: dict[str, Callable[[Histogram], float]] = {"entropy": _entropy, "mse": _least_error}
    peak = cut[method](seen)
    return Range(max(seen.low, -peak), min(seen.high, peak))


def check_percentile(percentile: float) -> None:
    """Refuses a share that leaves nothing or more than all inside: asked first, it spares the pictures.

    Raises:
        ConfigError: it is not above 50 and up to 100, percent.
    """
    if not 50 < percentile <= 100:
        raise ConfigError("The percentile is out of range", got=percentile, expected="above 50, up to 100")


def _percentile(seen: Histogram, percentile: float) -> Range:
    total = float(seen.counts.sum() + seen.zeros)
    outside = round(total * (100 - percentile) / 100, 6)  # 40 numbers, not 39.999999999998
    if seen.low < 0 < seen.high:
        outside /= 2
    high = _where(seen.counts[HALF:][::-1], outside, seen.reach)
    low = _where(seen.counts[:HALF], outside, seen.reach)
    if low == high == 0:
        return Range(seen.low, seen.high)
    return Range(max(seen.low, -low), min(seen.high, high))


def _where(from_outside: np.ndarray, outside: float, reach: float) -> float:
    """The magnitude beyond which so many numbers lie, bins given from the outermost; within a bin in proportion."""
    passed = np.cumsum(from_outside, dtype=np.float64)
    place = int(np.searchsorted(passed, outside, side="right"))
    if place >= len(from_outside):
        return 0.0
    before = passed[place - 1] if place else 0.0
    share = (outside - before) / from_outside[place]
    return float(reach * (1 - (place + share) / len(from_outside)))


def _entropy(seen: Histogram) -> float:
    counts = seen.magnitudes().astype(np.float64)
    last = int(np.flatnonzero(counts)[-1]) + 1  # half of all bins or more
    stops = [*range(_SIGNED_LEVELS, last, last // _CUTS), last]
    chosen = min(stops, key=lambda stop: _divergence(counts, stop))
    return seen.reach * chosen / HALF


def _divergence(counts: Float64[np.ndarray, " bins"], stop: int) -> float:
    """Kullback-Leibler divergence of a distribution cut at a bin from what its 128 levels tell of it."""
    inside = counts[:stop]
    told = inside.copy()
    told[-1] += counts[stop:].sum()
    levels = np.arange(stop) * _SIGNED_LEVELS // stop
    filled = inside > 0
    sums = np.bincount(levels, weights=inside, minlength=_SIGNED_LEVELS)
    numbers = np.bincount(levels, weights=filled, minlength=_SIGNED_LEVELS)
    spread = np.divide(sums, numbers, out=np.zeros(_SIGNED_LEVELS), where=numbers > 0)
    coarse = np.where(filled, spread[levels], 0.0)
    if told[-1] > 0 and coarse[-1] == 0:
        return np.inf  # what was cut away has nowhere to go
    p, q = told / told.sum(), coarse / max(coarse.sum(), 1e-300)
    known = p > 0
    return float((p[known] * np.log(p[known] / q[known])).sum())


def _least_error(seen: Histogram) -> float:
    counts = seen.counts.astype(np.float64)
    centers = (np.arange(-HALF, HALF) + 0.5) * (seen.reach / HALF)
    peak = max(-seen.low, seen.high)
    cuts = peak * np.linspace(_LEAST_SHARE, 1, _CANDIDATES)
    errors = []
    for cut in cuts:
        low, high = max(seen.low, -cut), min(seen.high, cut)
        beyond = np.maximum(centers - high, 0) + np.maximum(low - centers, 0)
        step = (high - low) / LEVELS
        errors.append(float((counts * np.where(beyond > 0, beyond**2, step**2 / 12)).sum()))
    return float(cuts[int(np.argmin(errors))])
