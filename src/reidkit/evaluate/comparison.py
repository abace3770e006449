"""Two reports over the same queries: whether they differ beyond chance, and where."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from reidkit.errors import InputError
from reidkit.evaluate.report import Report
from reidkit.metrics.bootstrap import PairedDifference, paired_difference

SIGNIFICANT = 0.05
"""Differences that chance alone would make less often than this are called real."""


@dataclass(frozen=True, slots=True)
class MeasureChange:
    """One measure of A and of B, over the queries that both have; fractions of 1.

    Attributes:
        measure: its name in the field.
        a: of A.
        b: of B.
        paired: B minus A, query by query, with its confidence interval and p value.
    """

    measure: str
    a: float
    b: float
    paired: PairedDifference


class QueryChange(NamedTuple):
    """Average precision of one query: its row, under A and under B."""

    row: int
    a: float
    b: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """What became of A in B.

    Attributes:
        a: the one.
        b: the other, over the same queries.
        measures: mAP first.
        queries: every query that both measured, those that B lost most first.
    """

    a: Report
    b: Report
    measures: tuple[MeasureChange, ...]
    queries: tuple[QueryChange, ...]

    @property
    def differ(self) -> bool:
        """Whether their mAP differs beyond chance."""
        return self.measures[0].paired.p_value < SIGNIFICANT

    def in_words(self, a: str, b: str) -> str:
        """The verdict in a sentence.

        Args:
            a: what to call A.
            b: what to call B.
        """
        change = self.measures[0].paired
        low, high = (100 * bound for bound in change.interval)
        figures = f"mAP {100 * change.difference:+.2f} (95 % {low:+.2f} to {high:+.2f}), p = {change.p_value:.2g}"
        if not self.differ:
            return f"{a} and {b} do not differ beyond chance on these {len(self.queries)} queries: {figures}."
        better = b if change.difference > 0 else a
        return f"{better} is better beyond chance on these {len(self.queries)} queries: {figures} for {b} against {a}."


def compare_reports(a: Report, b: Report, *, ranks: Sequence[int] = (1,)) -> Comparison:
    """Compares two reports query by query: paired, so that what all models find hard does not blur the difference.

    Args:
        a: of one model or engine.
        b: of another, on the same data under the same protocol.
        ranks: of the CMC, to compare beside mAP and mINP.

    Raises:
        InputError: data set, protocol or queries differ, or no query is valid in both.
    """
    for what, one, other in (
        ("data sets", a.dataset, b.dataset),
        ("protocols", a.protocol.name, b.protocol.name),
        ("queries", [crop.path for crop in a.crops], [crop.path for crop in b.crops]),
    ):
        if one != other:
            raise InputError(
                f"The two reports are of different {what}",
                got=f"{one} and {other}" if isinstance(one, str) else f"{len(one)} and {len(other)} of them",
                expected="the same: they are compared query by query",
            )
    table = {
        "mAP": (a.average_precision(), b.average_precision()),
        **{f"rank-{rank}": (a.found_within(rank), b.found_within(rank)) for rank in ranks},
        "mINP": (a.inverse_negative_penalty(), b.inverse_negative_penalty()),
    }
    both = np.isfinite(table["mAP"][0]) & np.isfinite(table["mAP"][1])
    if not both.any():
        raise InputError("No query is valid in both reports, so nothing can be compared", got=f"{len(both)} queries")
    measures = tuple(
        MeasureChange(
            name, float(one[both].mean()), float(other[both].mean()), paired_difference(one[both], other[both])
        )
        for name, (one, other) in table.items()
    )
    before, after = table["mAP"]
    rows = np.flatnonzero(both)
    order = rows[np.argsort(after[rows] - before[rows], kind="stable")]
    return Comparison(a, b, measures, tuple(QueryChange(i, float(before[i]), float(after[i])) for i in order.tolist()))
