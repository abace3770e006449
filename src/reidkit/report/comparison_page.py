"""Two models over the same queries as one HTML file: the verdict, and the queries that changed most, as pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from reidkit.atomic import output_file
from reidkit.errors import InputError
from reidkit.evaluate.comparison import Comparison, QueryChange
from reidkit.metrics.protocol import Draw
from reidkit.report.document import Block, Table, Words
from reidkit.report.pages import template
from reidkit.report.picture_cells import Cell, PagePictures, files_of, longest_distance, page_pictures
from reidkit.report.results import SearchResults
from reidkit.report.wording import percent
from reidkit.types import Progress, no_progress


@dataclass(frozen=True, slots=True)
class _Side:
    """What one of the two found for a query."""

    name: str
    average_precision: str
    found: Sequence[Cell]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A query on the page, with what both found for it."""

    number: int
    asked: Cell
    a: _Side
    b: _Side
    difference: str


@dataclass(frozen=True, slots=True)
class _Section:
    id: str
    heading: str
    short: str
    verdict: str  # style class of the difference
    total: int
    entries: Sequence[_Entry]


def write_comparison_page(
    out: Path | str,
    comparison: Comparison,
    results: tuple[SearchResults, SearchResults],
    *,
    names: tuple[str, str],
    title: str | None = None,
    facts: Mapping[str, str] = MappingProxyType({}),
    limit: int = 30,
    progress: Progress = no_progress,
) -> None:
    """Writes a comparison as one HTML file that needs nothing else: no server, no script, no network.

    The verdict and every measure come first; then the queries whose average precision changed most: those that B lost,
    then those that it gained. Each stands beside what A found and what B found, framed as on the page of a search. A
    picture is inside the file once, however often it is found; one that cannot be decoded is a labelled gap. Names are
    escaped; the same input gives the same bytes.

    Args:
        out: the HTML file.
        comparison: of A and B.
        results: what A found and what B found, for the same queries in the order of the reports.
        names: what to call A and B.
        title: of the page; without one, the two names.
        facts: what to say at the top besides, in this order.
        limit: queries shown at most: half of them lost, half gained, or more of the one where the other has fewer.
        progress: told the number of pictures read.

    Raises:
        InputError: `limit` is below 1, or the results are of other queries than the comparison.
        OutputError: the file cannot be written.
    """
    if limit < 1:
        raise InputError("The number of queries to show must be at least 1", got=limit)
    _check_same_queries(comparison, results)
    lost = [change for change in comparison.queries if change.b < change.a]
    gained = [change for change in reversed(comparison.queries) if change.b > change.a]
    shown = _most_changed(lost, gained, limit)
    rows = [change.row for part in shown for change in part]
    images = page_pictures(
        (path for row in rows for result in results for path in files_of(result, row)), progress=progress
    )
    longest = tuple(longest_distance(result, rows) for result in results)
    parts = (("lost", "lost", "wrong", lost), ("gained", "gained", "right", gained))
    sections = [
        _Section(
            id=name,
            heading=f"Queries that {names[1]} {word}",
            short=name.capitalize(),
            verdict=verdict,
            total=len(everyone),
            entries=[_entry(change, results, names, images, longest) for change in entries],
        )
        for (name, word, verdict, everyone), entries in zip(parts, shown, strict=True)
        if entries
    ]
    verdicts = {cell.verdict for section in sections for entry in section.entries for cell in _cells(entry)}
    text = template("comparison.html").render(
        title=f"{names[0]} against {names[1]}" if title is None else title,
        names=names,
        verdict=comparison.in_words(*names),
        facts=[*facts.items(), *_facts(comparison, len(lost), len(gained))],
        blocks=_measures(comparison, names),
        sections=sections,
        top=max(result.top for result in results),
        labelled=bool(verdicts & {"right", "wrong"}),
        mixed="unknown" in verdicts,
        pictures=images.jpegs,
        unreadable=images.unreadable,
        box=images.box,
    )
    with output_file(out) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _check_same_queries(comparison: Comparison, results: tuple[SearchResults, SearchResults]) -> None:
    expected = [crop.path for crop in comparison.a.crops]
    for name, result in zip("AB", results, strict=True):
        if [picture.path for picture in result.queries] != expected:
            raise InputError(
                f"What {name} found is not for the queries that were compared",
                got=f"{len(result.queries)} queries",
                expected=f"the {len(expected)} of the reports, in their order",
            )


def _most_changed(
    lost: Sequence[QueryChange], gained: Sequence[QueryChange], limit: int
) -> tuple[Sequence[QueryChange], Sequence[QueryChange]]:
    first = min(len(lost), max(limit - limit // 2, limit - len(gained)))
    return lost[:first], gained[: limit - first]


def _facts(comparison: Comparison, lost: int, gained: int) -> list[tuple[str, str]]:
    compared = len(comparison.queries)
    return [
        ("data", comparison.a.dataset),
        ("protocol", comparison.a.protocol.name),
        ("queries compared", f"{compared:,}"),
        ("lost, gained, the same", f"{lost:,}, {gained:,}, {compared - lost - gained:,}"),
    ]


def _measures(comparison: Comparison, names: tuple[str, str]) -> list[Block]:
    rows = []
    for change in comparison.measures:
        low, high = change.paired.interval
        rows.append(
            (
                *(change.measure, percent(change.a), percent(change.b), f"{100 * change.paired.difference:+.2f}"),
                *(f"{100 * low:+.2f} to {100 * high:+.2f}", f"{change.paired.p_value:.2g}"),
            )
        )
    words = (
        f"Over the valid queries; the difference is {names[1]} minus {names[0]}, query by query. The interval comes "
        "from a bootstrap over the queries. p is how often chance alone makes a difference as large."
    )
    words += _DRAWN[comparison.a.protocol.draw]
    columns = ("measure", *names, "difference", "95 % interval", "p")
    return [Table("In percent", columns, rows, 5), Words(words)]


_DRAWN: Mapping[Draw, str] = {
    "nothing": "",
    "per query": " The pictures and AP are of the whole gallery, rank-k of galleries that are drawn from it at random.",
    "gallery": " The pictures are of the whole gallery; AP and all measures are of galleries that are drawn from it at "
    "random, so a crop that stands first below need not be in one of them.",
}


def _entry(
    change: QueryChange,
    results: tuple[SearchResults, SearchResults],
    names: tuple[str, str],
    images: PagePictures,
    longest: tuple[float, ...],
) -> _Entry:
    # The distances of two models have nothing to do with each other: each side has its own longest.
    a, b = (
        _Side(name, f"{value:.1%}", images.found(result, result.hits(change.row), length))
        for name, value, result, length in zip(names, (change.a, change.b), results, longest, strict=True)
    )
    asked = images.asked(results[0].queries[change.row])
    return _Entry(change.row, asked, a, b, f"{100 * (change.b - change.a):+.1f}")


def _cells(entry: _Entry) -> list[Cell]:
    return [*entry.a.found, *entry.b.found]
