"""What a value was seen to be: its least and its most, and how often it was how large, in memory that does not grow."""

import math

import numpy as np
from jaxtyping import Float32, Int64

HALF = 2048
"""Bins to either side of 0."""
_BLOCK = 1 << 15  # numbers at a time, which stay in a core's cache: three times as fast as whole maps


class Histogram:
    """Counts of a value over any number of batches; the order in which they come makes no difference.

    Bins are equally wide and reach from minus to plus a power of two above all numbers, so that two of them become one
    when a larger number comes. Zeros are counted apart: every grid holds them, and behind a ReLU they are half of all.

    Attributes:
        low: least that was seen; 0 or below.
        high: most that was seen; 0 or above.
        zeros: how often it was exactly 0.
        counts: of other numbers, by bin: those below 0, then those above.
        reach: where the bins end.
    """

    def __init__(self) -> None:
        self.low, self.high = 0.0, 0.0
        self.zeros = 0
        self.counts = np.zeros(2 * HALF, np.int64)
        self.reach = 0.0

    def add(self, values: Float32[np.ndarray, "..."]) -> None:
        """Counts an array in.

        Raises:
            ValueError: it holds a NaN or an infinite number; nothing of it was counted.
        """
        flat = values.reshape(-1)
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("not finite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        zeros = flat.size - int(np.count_nonzero(flat))
        self.zeros += zeros
        peak = max(-low, high)
        if peak == 0:
            return
        self._widen(peak)
        self.counts[HALF] -= zeros
        for start in range(0, flat.size, _BLOCK):
            # float64: one below a bin's edge must not be rounded over it.
            places = flat[start : start + _BLOCK] * np.float64(HALF / self.reach)
            np.floor(places, out=places)
            places += HALF
            self.counts += np.bincount(places.astype(np.int64), minlength=2 * HALF)

    def magnitudes(self) -> Int64[np.ndarray, " bins"]:
        """Counts by absolute value, zeros left out; bins from 0 to `reach`."""
        return self.counts[:HALF][::-1] + self.counts[HALF:]

    def _widen(self, peak: float) -> None:
        # Above the peak and never at it: a number at the end would be in one bin now, and in another when bins merge.
        reach = math.ldexp(1.0, math.frexp(peak)[1])
        if self.reach == 0.0:
            self.reach = reach
        while self.reach < reach:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([np.zeros(HALF // 2, np.int64), merged, np.zeros(HALF // 2, np.int64)])
            self.reach *= 2
