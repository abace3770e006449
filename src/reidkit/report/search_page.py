"""A search as one HTML file: every picture inside, no script, nothing to fetch."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
from PIL import Image

from reidkit.atomic import output_file
from reidkit.report.pages import template
from reidkit.report.results import (
    Chapter,
    Picture,
    SearchResults,
    Verdict,
    chapters,
    distance_text,
    labels,
    printable,
)
from reidkit.report.thumbnails import box, thumbnails
from reidkit.types import Progress, no_progress

_SIDE = 192  # of a thumbnail, in pixels: sharp on the page, a few kilobytes each
_QUALITY = 80
_BINS = 10

# By chapter: the heading, its short form for the menu, and the order in words.
_HEADINGS: dict[str, tuple[str, str, str]] = {
    "all": ("Queries", "Queries", ", hardest first"),
    "hardest": ("Hardest queries", "Hardest", ", hardest first"),
    "between": ("In between", "In between", ", hardest first"),
    "easiest": ("Easiest queries", "Easiest", ", easiest first"),
    "unmatched": ("No match in the gallery", "No match", ""),
}
_WORDS: dict[Verdict, str] = {"right": "same identity", "wrong": "another identity", "unknown": "not labelled"}


@dataclass(frozen=True, slots=True)
class _Cell:
    """A picture on the page; `image` is the number of its style rule, None where it could not be decoded."""

    image: int | None
    file: str
    labels: list[str]
    verdict: Verdict | Literal["query"] = "query"
    words: str = ""
    rank: int = 0
    distance: str = ""
    length: float = 0.0  # of the distance, in percent of the longest on the page


@dataclass(frozen=True, slots=True)
class _Entry:
    """A query on the page with what was found for it."""

    number: int
    asked: _Cell
    found: Sequence[_Cell]
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
    paths = [results.queries[query].path for query in rows]
    paths += [results.gallery[hit.row].path for query in rows for hit in results.hits(query)]
    images = thumbnails(paths, _SIDE, progress=progress)
    numbers = {path: number for number, path in enumerate(path for path, image in images.items() if image is not None)}
    sections = _sections(results, chosen, numbers)
    verdicts = {cell.verdict for section in sections for entry in section.entries for cell in entry.found}
    text = template("search.html").render(
        title=printable(title),
        facts=[(printable(name), printable(value)) for name, value in facts.items()],
        queries=len(results.queries),
        gallery=len(results.gallery),
        top=results.top,
        shown=len(rows),
        sections=sections,
        labelled=bool(verdicts & {"right", "wrong"}),
        mixed="unknown" in verdicts,
        histogram=_histogram(results),
        pictures={numbers[path]: _jpeg(image) for path, image in images.items() if image is not None},
        unreadable=len(images) - len(numbers),
        box=box(images, 96 * 192),
    )
    with output_file(out) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _sections(results: SearchResults, chosen: Sequence[Chapter], numbers: Mapping[Path, int]) -> list[_Section]:
    longest = max((hit.distance for part in chosen for query in part.rows for hit in results.hits(query)), default=0.0)
    return [
        _Section(
            part.name,
            *_HEADINGS[part.name],
            entries=[_entry(results, query, numbers, longest or 1.0) for query in part.rows],
        )
        for part in chosen
    ]


def _entry(results: SearchResults, query: int, numbers: Mapping[Path, int], longest: float) -> _Entry:
    asked, hits = results.queries[query], results.hits(query)
    score = results.scores[query] if results.scores is not None else None
    found = [
        replace(
            _cell(results.gallery[hit.row], numbers),
            verdict=hit.verdict,
            words=_WORDS[hit.verdict],
            rank=hit.rank,
            distance=distance_text(hit.distance),
            length=round(100 * hit.distance / longest, 1),
        )
        for hit in hits
    ]
    visible = next((hit.rank for hit in hits if hit.verdict == "right"), None)
    return _Entry(
        number=query,
        asked=_cell(asked, numbers),
        found=found,
        first=hits[0].verdict if hits else "unknown",
        average_precision=f"{score.average_precision:.1%}" if score else None,
        first_match=score.first_match if score else visible,
    )


def _cell(picture: Picture, numbers: Mapping[Path, int]) -> _Cell:
    return _Cell(numbers.get(picture.path), printable(picture.path.name), labels(picture))


def _histogram(results: SearchResults) -> list[_Bin]:
    values = [score.average_precision for score in results.scores or () if score is not None]
    if not values:
        return []
    counts = np.histogram(values, bins=_BINS, range=(0, 1))[0].tolist()
    step = 100 // _BINS
    return [
        _Bin(i * step, (i + 1) * step, count, round(100 * count / max(counts), 1)) for i, count in enumerate(counts)
    ]


def _jpeg(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=_QUALITY, optimize=True)
    return base64.b64encode(stream.getvalue()).decode("ascii")
