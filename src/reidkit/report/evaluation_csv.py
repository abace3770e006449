"""Reports as a table for a spreadsheet or a script."""

import csv
from collections.abc import Sequence
from pathlib import Path

from reidkit.atomic import output_file
from reidkit.errors import InputError
from reidkit.evaluate import Report
from reidkit.metrics.roc import rate_text
from reidkit.report.results import printable

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_evaluation_csv(out: Path | str, reports: Sequence[Report]) -> None:
    """Writes one row for each report, fractions of 1 and not rounded; a cell is empty where there is no value.

    The columns are model, dataset, protocol, draws, metric, runtime, precision, device, tta, refinement; "rank1" and so
    on for the ranks that were asked for; mAP, mAP_low and mAP_high (its 95 % confidence interval), mINP; "tpr@1e-4" and
    so on for the false positive rates that were asked for; queries, valid, valid_per_draw, unmatched, lost,
    never_asked, gallery, gallery_per_draw, distractors, junk, unreadable_query, unreadable_gallery. Ranks and rates
    that only some of the reports have, have their columns too.

    A spreadsheet takes a cell that begins with `=`, `+`, `-` or `@` for a formula and may run it; so a name that does
    gets an apostrophe before it.

    Raises:
        InputError: there are no reports.
        OutputError: the file cannot be written.
    """
    rows = [_row(report) for report in reports]
    if not rows:
        raise InputError("There are no reports to write", expected="at least one")
    groups = [list(dict.fromkeys(name for row in rows for name in row[i])) for i in range(len(rows[0]))]
    columns = [name for group in groups for name in group]
    with output_file(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _cell(value) for group in row for name, value in group.items()})


def _row(report: Report) -> tuple[dict[str, object], ...]:
    """Names and values, in groups: each group's columns stand together."""
    by, (low, high) = report.embedded, report.interval("mAP")
    rates = report.true_positive_rates() or dict.fromkeys(report.rates)
    return (
        {
            "model": by.model,
            "dataset": report.dataset,
            "protocol": report.protocol.name,
            "draws": report.draws,
            "metric": report.metric,
            "runtime": by.runtime,
            "precision": by.precision,
            "device": by.device,
            "tta": by.tta,
            "refinement": report.refinement.in_words(),
        },
        {f"rank{rank}": report.cmc(rank) for rank in report.ranks},
        {"mAP": report.mean_ap, "mAP_low": low, "mAP_high": high, "mINP": report.mean_inp},
        {f"tpr@{rate_text(rate)}": tpr for rate, tpr in rates.items()},
        {
            "queries": report.queries,
            "valid": report.valid,
            "valid_per_draw": report.valid_per_draw,
            "unmatched": report.unmatched,
            "lost": report.lost,
            "never_asked": report.never_asked,
            "gallery": report.gallery,
            "gallery_per_draw": report.gallery_per_draw,
            "distractors": report.distractors,
            "junk": report.junk,
            "unreadable_query": report.unreadable.query,
            "unreadable_gallery": report.unreadable.gallery,
        },
    )


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    return printable(f"'{value}" if value.startswith(_FORMULA) else value)
