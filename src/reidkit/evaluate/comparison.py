"""Two reports over the same queries: whether they differ beyond chance, and where."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from reidkit.errors import InputError
from reidkit.evaluate.report import Report
from reidkit.metrics.bootstrap import PairedDifference, paired_difference

SIGNIFICANT = 0.05
"""Differences that chance alone would make less often than this are called real."""


@dataclass(frozen=True, slots=True)
class MeasureChange:
    """One measure of A and of B; fractions of 1.

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
        queries: every measured query, those that B lost most first.
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
        words = f"{a} and {b} do not differ beyond chance on these {len(self.queries)} queries: {figures}."
        if self.differ:
            better = b if change.difference > 0 else a
            words = (
                f"{better} is better beyond chance on these {len(self.queries)} queries: {figures} for {b} against {a}."
            )
        return words + self._measured_differently(a, b)

    def as_dict(self, a: str, b: str) -> dict[str, Any]:
        """Plain values, as `reid compare --json` writes them.

        Args:
            a: what to call A.
            b: what to call B.
        """
        return {
            "a": self.a.as_dict(),
            "b": self.b.as_dict(),
            "verdict": self.in_words(a, b),
            "differ": self.differ,
            "measures": [
                {
                    "measure": change.measure,
                    "a": change.a,
                    "b": change.b,
                    "difference": change.paired.difference,
                    "interval": list(change.paired.interval),
                    "p": change.paired.p_value,
                }
                for change in self.measures
            ],
            "queries": [{"query": self.a.names[row], "a": before, "b": after} for row, before, after in self.queries],
        }

    def _measured_differently(self, a: str, b: str) -> str:
        settings = (
            ("metric", self.a.metric, self.b.metric),
            ("refinement", self.a.refinement.in_words(), self.b.refinement.in_words()),
        )
        return "".join(f" The {what} of {a} is {x}, that of {b} {y}." for what, x, y in settings if x != y)


def compare_reports(a: Report, b: Report, *, ranks: Sequence[int] = (1,)) -> Comparison:
    """Compares two reports query by query: paired, so that what all models find hard does not blur the difference.

    Metric and refinement may differ, since one may ask what they are worth; the verdict then says so.

    Args:
        a: of one model or engine.
        b: of another, on the same data under the same protocol.
        ranks: of the CMC, to compare beside mAP and mINP.

    Raises:
        InputError: data set, protocol, queries or gallery differ.
    """
    _check_same(a, b)
    measures = [
        ("mAP", a.mean_ap, b.mean_ap),
        *((f"rank-{rank}", a.cmc(rank), b.cmc(rank)) for rank in ranks),
        ("mINP", a.mean_inp, b.mean_inp),
    ]
    changes = tuple(
        MeasureChange(name, of_a, of_b, paired_difference(a.shares(name), b.shares(name)))
        for name, of_a, of_b in measures
    )
    before, after = a.average_precision(), b.average_precision()
    rows = np.flatnonzero(np.isfinite(before))
    order = rows[np.argsort(after[rows] - before[rows], kind="stable")]
    return Comparison(a, b, changes, tuple(QueryChange(i, float(before[i]), float(after[i])) for i in order.tolist()))


def _check_same(a: Report, b: Report) -> None:
    valid_a, valid_b = (np.array([ranking.valid for ranking in report.rankings]) for report in (a, b))
    for what, same, got_a, got_b in (
        ("data sets", a.dataset == b.dataset, a.dataset, b.dataset),
        ("protocols", a.protocol == b.protocol, a.protocol.name, b.protocol.name),
        ("galleries", a.gallery == b.gallery, f"{a.gallery} crops", f"{b.gallery} crops"),
        ("readable pictures", a.unreadable == b.unreadable, _left_out(a), _left_out(b)),
        ("queries", a.names == b.names, f"{len(a.names)} of them", f"{len(b.names)} of them"),
        ("valid queries", np.array_equal(valid_a, valid_b), f"{a.valid} of them", f"{b.valid} of them"),
    ):
        if not same:
            raise InputError(
                f"The two reports are of different {what}",
                got=f"{got_a} and {got_b}",
                expected="the same: they are compared query by query",
            )


def _left_out(report: Report) -> str:
    return f"{report.unreadable.query} query and {report.unreadable.gallery} gallery pictures unreadable"
