"""An evaluation as one HTML file: tables, curves and mAP from camera to camera; no script, nothing to fetch."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from reidkit.atomic import output_file
from reidkit.errors import InputError
from reidkit.evaluate import Report
from reidkit.metrics.camera_pairs import CameraPairs
from reidkit.metrics.protocol import Protocol
from reidkit.metrics.roc import rate_text
from reidkit.report.curves import CmcCurve, RocCurve, cmc_svg, roc_svg
from reidkit.report.document import (
    Block,
    Code,
    Document,
    Facts,
    Figure,
    Folded,
    Grid,
    GridCell,
    Points,
    Section,
    Table,
    Words,
    as_page,
)
from reidkit.report.results import printable
from reidkit.report.wording import percent, settings, told_apart

_RANKS = 50  # of the CMC curves
_OPEN_GRIDS = 2  # camera tables that stand open; more are folded away


def write_evaluation_page(out: Path | str, reports: Sequence[Report], *, title: str | None = None) -> None:
    """Writes reports as one HTML file that needs nothing else: no server, no script, no network.

    One table of all reports; where there are several models and several data sets, a matrix of both for each way they
    were measured; CMC and ROC curves; mAP from camera to camera; what was measured and how. Names are escaped; the same
    reports give the same bytes.

    Args:
        out: the HTML file.
        reports: in the order in which they are to be shown.
        title: of the page; without one, models and data.

    Raises:
        InputError: there are no reports.
        OutputError: the file cannot be written.
    """
    text = as_page(evaluation(reports, title=title))
    with output_file(out) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def evaluation(reports: Sequence[Report], *, title: str | None = None) -> Document:
    """What the page says, as a document.

    Raises:
        InputError: there are no reports.
    """
    if not reports:
        raise InputError("There are no reports to show", expected="at least one")
    names = told_apart(reports)
    sections = [
        Section("Results", _results(reports)),
        Section("Every model on every data set", list(_matrices(reports))),
        Section("Curves", _curves(reports, names)),
        Section("From camera to camera", _camera_pairs(reports, names)),
        Section("What was measured", _measured(reports, names)),
        Section("How", _how(reports)),
    ]
    return Document(
        kind="Evaluation",
        title=_title(reports) if title is None else title,
        lede="Re-identification accuracy: for each query, the gallery is ranked by how near its crops are; the better "
        "the model, the further up stand those that show the same identity.",
        headline=_headline(reports),
        sections=[section for section in sections if section.blocks],
        footer="Made by reidkit. Everything is inside this file.",
        wide=True,
    )


def _title(reports: Sequence[Report]) -> str:
    models, datasets = _models(reports), _datasets(reports)
    who = models[0] if len(models) == 1 else f"{len(models)} models"
    return f"{who} on {datasets[0] if len(datasets) == 1 else f'{len(datasets)} data sets'}"


def _headline(reports: Sequence[Report]) -> list[tuple[str, str]]:
    if len(reports) > 1:
        return [
            ("reports", str(len(reports))),
            ("models", str(len(_models(reports)))),
            ("data sets", str(len(_datasets(reports)))),
        ]
    (report,) = reports
    return [
        ("mAP", f"{percent(report.mean_ap)} %"),
        *((f"rank-{rank}", f"{percent(report.cmc(rank))} %") for rank in report.ranks[:1]),
        ("mINP", f"{percent(report.mean_inp)} %"),
        ("valid queries" if report.draws == 1 else "valid queries a draw", f"{report.valid_per_draw:,}"),
    ]


def _results(reports: Sequence[Report]) -> list[Block]:
    facts = [settings(report) for report in reports]
    # Engine and TTA always; the rest only where it differs: what all have in common is said below.
    shown = [key for key in facts[0] if key in ("engine", "TTA") or len({fact[key] for fact in facts}) > 1]
    ranks = list(dict.fromkeys(rank for report in reports for rank in report.ranks))
    rates = list(dict.fromkeys(rate for report in reports for rate in report.rates if report.roc is not None))
    rows = []
    for report, fact in zip(reports, facts, strict=True):
        low, high = report.interval("mAP")
        tprs = report.true_positive_rates() or {}
        rows.append(
            (
                *(report.embedded.model, report.dataset, *(fact[key] for key in shown)),
                *(percent(report.cmc(rank)) for rank in ranks),
                *(percent(report.mean_ap), f"{percent(low)} to {percent(high)}", percent(report.mean_inp)),
                *(percent(tprs[rate]) if rate in tprs else "" for rate in rates),
            )
        )
    numbers = [
        *(f"rank-{rank}" for rank in ranks),
        *("mAP", "95 % interval", "mINP"),
        *(f"TPR@{rate_text(rate)}" for rate in rates),
    ]
    same = [(key, value) for key, value in facts[0].items() if key not in shown]
    return [
        Table("In percent", ("model", "data", *shown, *numbers), rows, len(numbers)),
        *([Facts(same)] if same else []),
        Words(_MEASURES + (_TPR if rates else "")),
    ]


_MEASURES = (
    "rank-k: queries with a right crop among the k nearest. mAP: mean average precision, which also asks for the other "
    "right crops. mINP: mean inverse negative penalty, which asks how far down the last of them stands."
)
_TPR = (
    " TPR@f: pairs of one identity that are accepted at the distance at which a share f of the pairs of two identities "
    "is accepted, too."
)


def _models(reports: Iterable[Report]) -> list[str]:
    return list(dict.fromkeys(report.embedded.model for report in reports))


def _datasets(reports: Iterable[Report]) -> list[str]:
    return list(dict.fromkeys(report.dataset for report in reports))


def _matrices(reports: Sequence[Report]) -> Iterable[Block]:
    """A matrix of models and data sets for each way of measuring that has several of both."""
    differing = [key for key in settings(reports[0]) if len({settings(report)[key] for report in reports}) > 1]
    ways: dict[tuple[str, ...], list[Report]] = {}
    for report in reports:
        # The protocol belongs to the data set: one matrix may have some of persons beside some of vehicles.
        way = tuple(f"{key} {settings(report)[key]}" for key in differing if key != "protocol")
        ways.setdefault(way, []).append(report)
    for way, group in ways.items():
        models = _models(group)
        if len(models) > 1 and len(_datasets(group)) > 1:
            yield _matrix(", ".join(way), models, group)


def _matrix(way: str, models: Sequence[str], reports: Sequence[Report]) -> Grid:
    # A data set that was measured under two protocols is two.
    protocols = {data: {r.protocol.name for r in reports if r.dataset == data} for data in _datasets(reports)}
    columns: dict[str, dict[str, list[float]]] = {}
    for report in reports:
        many = len(protocols[report.dataset]) > 1
        column = f"{report.dataset}, {report.protocol.name}" if many else report.dataset
        columns.setdefault(column, {}).setdefault(report.embedded.model, []).append(report.mean_ap)
    best = {column: max(max(values) for values in found.values()) for column, found in columns.items()}
    rows = [
        (model, [_matrix_cell(found.get(model, []), best[column]) for column, found in columns.items()])
        for model in models
    ]
    measured = f"Measured with {way}: " if way else ""
    caption = f"{measured}mAP in percent; the best of each data set has a frame and a star"
    return Grid(caption, "model", list(columns), rows)


def _matrix_cell(values: Sequence[float], best: float) -> GridCell:
    if not values:
        return GridCell(words="not measured")
    # The same model, data and settings, measured more than once: each is shown.
    return GridCell(" / ".join(percent(value) for value in values), max(values), best in values)


def _curves(reports: Sequence[Report], names: Sequence[str]) -> list[Block]:
    cmc = [CmcCurve(name, report.cmc_curve(_RANKS)) for name, report in zip(names, reports, strict=True)]
    blocks: list[Block] = [Figure("Share of the queries with a right crop among the nearest k", cmc_svg(cmc))]
    roc = [
        RocCurve(name, *report.roc.curve())
        for name, report in zip(names, reports, strict=True)
        if report.roc is not None
    ]
    if roc:
        blocks.append(Figure("Verification: is a pair one identity or two?", roc_svg(roc)))
    if len(roc) < len(reports):
        blocks.append(Words("There is no ROC curve where galleries are drawn at random."))
    return blocks


def _camera_pairs(reports: Sequence[Report], names: Sequence[str]) -> list[Block]:
    grids = [
        _camera_grid(report.camera_pairs, report.camera_names, name if len(reports) > 1 else "")
        for name, report in zip(names, reports, strict=True)
        if report.camera_pairs is not None
    ]
    if not grids:
        return []
    words = (
        "mAP in percent where the gallery holds the crops of one camera only. A stronger colour is a higher mAP; a "
        "hatched cell has no query with a right crop there. Point at a cell for its number of queries."
    )
    if len(grids) <= _OPEN_GRIDS:
        return [Words(words), *grids]
    return [Words(words), *(Folded(grid.caption, [replace(grid, caption="")]) for grid in grids)]


def _camera_grid(pairs: CameraPairs, names: Mapping[int, str], caption: str) -> Grid:
    asked, searched = (
        [names.get(camera, str(camera)) for camera in cameras.tolist()]
        for cameras in (pairs.query_cameras, pairs.gallery_cameras)
    )
    rows = [
        (
            name,
            [
                _camera_cell(float(pairs.mean_ap[row, column]), int(pairs.queries[row, column]), (name, other))
                for column, other in enumerate(searched)
            ],
        )
        for row, name in enumerate(asked)
    ]
    return Grid(caption, "query camera", searched, rows)


def _camera_cell(precision: float, queries: int, cameras: tuple[str, str]) -> GridCell:
    where = f"camera {cameras[0]} to camera {cameras[1]}"
    if queries == 0 or math.isnan(precision):
        return GridCell(words=f"{where}: no query")
    return GridCell(f"{100 * precision:.1f}", precision, words=f"{where}: {queries:,} queries")


def _measured(reports: Sequence[Report], names: Sequence[str]) -> list[Block]:
    drawn = any(report.protocol.draw != "nothing" for report in reports)
    counts = [_counts(report) | (_counts_of_draws(report) if drawn else {}) for report in reports]
    rows = [
        (name, report.protocol.name, *(f"{number:,}" for number in count.values()))
        for name, report, count in zip(names, reports, counts, strict=True)
    ]
    warnings = [_warning(name, report) for name, report in zip(names, reports, strict=True) if any(report.unreadable)]
    return [
        Table("", ("report", "protocol", *counts[0]), rows, len(counts[0])),
        Words(_COUNTS + (_COUNTS_OF_DRAWS if drawn else "")),
        *([Points(warnings)] if warnings else []),
        *_not_measured(reports),
    ]


def _counts(report: Report) -> dict[str, int]:
    return {
        "queries": report.queries,
        "valid": report.valid,
        "no match": report.unmatched,
        "lost": report.lost,
        "gallery": report.gallery,
        "distractors": report.distractors,
        "junk": report.junk,
        "unreadable": sum(report.unreadable),
    }


def _counts_of_draws(report: Report) -> dict[str, int]:
    return {
        "never asked": report.never_asked,
        "draws": report.draws,
        "valid a draw": report.valid_per_draw,
        "gallery a draw": report.gallery_per_draw,
    }


_COUNTS = (
    "Figures are means over the valid queries: those with a right crop in the gallery. Distractors show nobody "
    "who is asked for, and count as wrong. Junk is what the data set itself takes out."
)
_COUNTS_OF_DRAWS = (
    " Where galleries are drawn, valid are the queries that any draw measured; never asked are those that have a match "
    "which no draw held."
)


def _warning(name: str, report: Report) -> str:
    query, gallery = report.unreadable
    return (
        f"{name}: {query:,} query and {gallery:,} gallery pictures could not be decoded and were left out, so these "
        f"are the figures of an easier data set; {report.lost:,} queries were lost to it."
    )


def _not_measured(reports: Sequence[Report]) -> Iterable[Block]:
    """Names of the queries without a match, and of those that were lost, once for each data set and protocol."""
    found = dict.fromkeys(
        (report.dataset, report.protocol.name, what, names)
        for report in reports
        for what, names in (("without a match", report.unmatched_names), ("lost", report.lost_names))
    )
    for dataset, protocol, what, names in found:
        if names:
            files = "\n".join(printable(name) for name in names)
            yield Code(files, f"{dataset}, {protocol}: queries {what} ({len(names):,})")


def _how(reports: Sequence[Report]) -> list[Block]:
    protocols = {report.protocol.name: report.protocol for report in reports}
    return [Points([*(_protocol(protocol) for protocol in protocols.values()), _TIES, _INTERVALS])]


_TIES = "Where a wrong crop is exactly as far as a right one, the wrong one ranks first."
_INTERVALS = (
    "The 95 % intervals come from a bootstrap over the valid queries: as many queries are drawn with replacement, "
    "again and again, and the interval holds the middle 95 % of the means. It says what other queries of this kind "
    "would give, not what other cameras, another gallery or another training run would. Queries of one identity are "
    "alike, which makes it a little too narrow."
)


def _protocol(protocol: Protocol) -> str:
    left_out = (
        "crops of the query's identity from the query's own camera are left out of its ranking"
        if protocol.junk
        else "every crop of the query's identity is a match, whatever its camera"
    )
    drawn = {
        "nothing": "",
        "per query": f"; one crop of each identity is drawn anew for each query, {protocol.draws} times: means of them",
        "gallery": f"; one crop of each identity is drawn as the gallery, {protocol.draws} times: means of them",
    }
    return f"Protocol {protocol.name} ({protocol.source}): {left_out}{drawn[protocol.draw]}."
