"""A search as one HTML file: every picture inside, no script, nothing to fetch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from reidkit.atomic import output_file
from reidkit.report.pages import template
from reidkit.report.picture_cells import Cell, PagePictures, files_of, longest_distance, page_pictures
from reidkit.report.results import SearchResults, Verdict, chapters
from reidkit.types import Progress, no_progress

_BINS = 10

# By chapter: the heading, its short form for the menu, and the order in words.
_HEADINGS: dict[str, tuple[str, str, str]] = {
    "all": ("Queries", "Queries", ", hardest first"),
    "hardest": ("Hardest queries", "Hardest", ", hardest first"),
    "between": ("In between", "In between", ", hardest first"),
    "easiest": ("Easiest queries", "Easiest", ", easiest first"),
    "unmatched": ("No match in the gallery", "No match", ""),
}


@dataclass(frozen=True, slots=True)
class _Entry:
    """A query on the page with what was found for it."""

    number: int
    asked: Cell
    found: Sequence[Cell]
    first: Verdict
    average_precision: str | None
    first_match: int | None


@dataclass(frozen=True, slots=True)
class _Section:
    id: str
    heading: str
    short: str
    order: str
    entries: Sequence[_Entry]


@dataclass(frozen=True, slots=True)
class _Bin:
    low: int  # percent
    high: int
    count: int
    height: float  # percent of the highest


def write_search_page(
    out: Path | str,
    results: SearchResults,
    *,
    title: str,
    facts: Mapping[str, str] = MappingProxyType({}),
    max_queries: int = 60,
    progress: Progress = no_progress,
) -> None:
    """Writes a search as one HTML file that needs nothing else: no server, no script, no network.

    Each query stands beside what was found for it: a green frame with a tick is right, a red one with a cross is wrong,
    a grey one unknown. Hardest queries come first when labels are known. A picture that cannot be decoded is a labelled
    gap. File names and labels are escaped; the same input gives the same bytes.

    Args:
        out: the HTML file.
        results: what was found.
        title: of the page.
        facts: what to say at the top, in this order: model, data set, measured accuracy.
        max_queries: shown at most: the hardest, the easiest and some in between; the page says how many of how many.
        progress: told the number of pictures read.

    Raises:
        InputError: `max_queries` is below 1.
        OutputError: the file cannot be written.
    """
    chosen = chapters(results, max_queries)
    rows = [query for chapter in chosen for query in chapter.rows]
    images = page_pictures((path for query in rows for path in files_of(results, query)), progress=progress)
    longest = longest_distance(results, rows)
    sections = [
        _Section(part.name, *_HEADINGS[part.name], [_entry(results, query, images, longest) for query in part.rows])
        for part in chosen
    ]
    verdicts = {cell.verdict for section in sections for entry in section.entries for cell in entry.found}
    text = template("search.html").render(
        title=title,
        facts=list(facts.items()),
        queries=len(results.queries),
        gallery=len(results.gallery),
        top=results.top,
        shown=len(rows),
        sections=sections,
        labelled=bool(verdicts & {"right", "wrong"}),
        mixed="unknown" in verdicts,
        histogram=_histogram(results),
        pictures=images.jpegs,
        unreadable=images.unreadable,
        box=images.box,
    )
    with output_file(out) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _entry(results: SearchResults, query: int, images: PagePictures, longest: float) -> _Entry:
    hits = results.hits(query)
    score = results.scores[query] if results.scores is not None else None
    visible = next((hit.rank for hit in hits if hit.verdict == "right"), None)
    return _Entry(
        number=query,
        asked=images.asked(results.queries[query]),
        found=images.found(results, hits, longest),
        first=hits[0].verdict if hits else "unknown",
        average_precision=f"{score.average_precision:.1%}" if score else None,
        first_match=score.first_match if score else visible,
    )


def _histogram(results: SearchResults) -> list[_Bin]:
    values = [score.average_precision for score in results.scores or () if score is not None]
    if not values:
        return []
    counts = np.histogram(values, bins=_BINS, range=(0, 1))[0].tolist()
    step = 100 // _BINS
    return [
        _Bin(i * step, (i + 1) * step, count, round(100 * count / max(counts), 1)) for i, count in enumerate(counts)
    ]
