"""Pictures on a page: each inside it once, as a style rule, however often it is shown."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from reidkit.report.results import Hit, Picture, SearchResults, Verdict, distance_text, labels
from reidkit.report.thumbnails import box, thumbnails
from reidkit.types import Progress

_SIDE = 192  # of a thumbnail, in pixels: sharp on the page, a few kilobytes each
_QUALITY = 80
_AREA = 96 * 192  # square pixels of a picture's box
_WORDS: dict[Verdict, str] = {"right": "same identity", "wrong": "another identity", "unknown": "not labelled"}


@dataclass(frozen=True, slots=True)
class Cell:
    """A picture on the page; `image` is the number of its style rule, None where it could not be decoded."""

    image: int | None
    file: str
    labels: list[str]
    verdict: Verdict | Literal["query"] = "query"
    words: str = ""
    rank: int = 0
    distance: str = ""
    length: float = 0.0  # of the distance, in percent of the longest


@dataclass(frozen=True, slots=True)
class PagePictures:
    """The pictures of a page, decoded.

    Attributes:
        numbers: of the style rule of each picture that could be decoded.
        jpegs: in base64, by that number.
        unreadable: how many could not.
        box: width and height that suit most of them, in pixels.
    """

    numbers: Mapping[Path, int]
    jpegs: Mapping[int, str]
    unreadable: int
    box: tuple[int, int]

    def asked(self, picture: Picture) -> Cell:
        """The cell of a query."""
        return Cell(self.numbers.get(picture.path), picture.path.name, labels(picture))

    def found(self, results: SearchResults, hits: Sequence[Hit], longest: float) -> list[Cell]:
        """The cells of what was found for a query.

        Args:
            results: that the hits are of.
            hits: nearest first.
            longest: distance, to draw the others against.
        """
        return [self._hit(results.gallery[hit.row], hit, longest) for hit in hits]

    def _hit(self, picture: Picture, hit: Hit, longest: float) -> Cell:
        return Cell(
            image=self.numbers.get(picture.path),
            file=picture.path.name,
            labels=labels(picture),
            verdict=hit.verdict,
            words=_WORDS[hit.verdict],
            rank=hit.rank,
            distance=distance_text(hit.distance),
            length=round(100 * hit.distance / (longest or 1.0), 1),
        )


def page_pictures(paths: Iterable[Path], *, progress: Progress) -> PagePictures:
    """Decodes the pictures of a page, each once, and shrinks them; see `thumbnails`."""
    images = thumbnails(paths, _SIDE, progress=progress)
    decoded = {path: image for path, image in images.items() if image is not None}
    return PagePictures(
        numbers={path: number for number, path in enumerate(decoded)},
        jpegs={number: _jpeg(image) for number, image in enumerate(decoded.values())},
        unreadable=len(images) - len(decoded),
        box=box(images, _AREA),
    )


def files_of(results: SearchResults, query: int) -> list[Path]:
    """The files of a query and of what was found for it."""
    return [results.queries[query].path, *(results.gallery[hit.row].path for hit in results.hits(query))]


def longest_distance(results: SearchResults, queries: Iterable[int]) -> float:
    """The largest distance of what was found for these queries; 0 where nothing was."""
    return max((hit.distance for query in queries for hit in results.hits(query)), default=0.0)


def _jpeg(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=_QUALITY, optimize=True)
    return base64.b64encode(stream.getvalue()).decode("ascii")
