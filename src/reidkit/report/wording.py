"""Figures and settings of an evaluation, in words."""

from collections.abc import Sequence

from reidkit.evaluate import Report
from reidkit.report.results import UNKNOWN


def percent(value: float) -> str:
    """A fraction of 1 in percent, without the sign: `82.15`."""
    return f"{100 * value:.2f}"


def settings(report: Report) -> dict[str, str]:
    """How a report was made: engine, precision, device, TTA, protocol, metric and refinement."""
    by = report.embedded
    return {
        "engine": by.runtime or UNKNOWN,
        "precision": by.precision or UNKNOWN,
        "device": by.device or UNKNOWN,
        "TTA": by.tta,
        "protocol": report.protocol.name,
        "metric": report.metric,
        "refinement": report.refinement.in_words(),
    }


def told_apart(reports: Sequence[Report]) -> list[str]:
    """A short name for each report: its model, and whatever else it differs in from the others.

    Reports that differ in nothing are numbered.
    """
    everything = [{"data": report.dataset, **settings(report)} for report in reports]
    differing = [key for key in everything[0] if len({facts[key] for facts in everything}) > 1] if reports else []
    names = [
        ", ".join([report.embedded.model, *(_said(key, facts[key]) for key in differing)])
        for report, facts in zip(reports, everything, strict=True)
    ]
    return [
        name if names.count(name) == 1 else f"{name}, no. {names[: i + 1].count(name)}" for i, name in enumerate(names)
    ]


def _said(key: str, value: str) -> str:
    return f"{key} {value}" if key in ("TTA", "refinement") or value == UNKNOWN else value
