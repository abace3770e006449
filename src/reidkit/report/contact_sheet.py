"""Contact sheets: pictures in rows, as one PNG that can go into a message or a slide."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from reidkit.atomic import output_file
from reidkit.errors import InputError
from reidkit.report.results import SearchResults, chapters, distance_text, labels, printable
from reidkit.report.thumbnails import box, fitted, thumbnails
from reidkit.types import Progress, no_progress

Frame = Literal["plain", "query", "right", "wrong", "unknown"]

FRAME_COLORS: dict[Frame, tuple[int, int, int]] = {
    "plain": (226, 232, 240),
    "query": (30, 41, 59),
    "right": (22, 163, 74),
    "wrong": (220, 38, 38),
    "unknown": (148, 163, 184),
}
"""RGB of the frame around a picture."""

_PAPER, _WELL, _INK, _FAINT = (255, 255, 255), (241, 245, 249), (15, 23, 42), (100, 116, 139)
_AREA = 96 * 192  # square pixels of a picture's box
_MARGIN, _GAP, _FRAME = 24, 10, 4
_TITLE, _HEADING, _CAPTION = 40, 26, 20  # heights of the lines of text, in pixels
_BADGE = 16


class _Tile(NamedTuple):
    path: Path
    frame: Frame = "plain"
    caption: str = ""


class _Row(NamedTuple):
    heading: str
    tiles: Sequence[_Tile]


def write_contact_sheet(
    out: Path | str, results: SearchResults, *, title: str, rows: int = 12, progress: Progress = no_progress
) -> None:
    """Draws a search as a PNG: each row a query and what was found for it, hard queries first.

    A green frame is a right picture, a red one a wrong one, a grey one unknown; the number is the distance.

    Args:
        out: the PNG file.
        results: what was found.
        title: a line for the top of the sheet.
        rows: queries to show at most, chosen as `chapters` does.
        progress: told the number of pictures read.

    Raises:
        InputError: `rows` is below 1.
        OutputError: the file cannot be written.
    """
    chosen = [query for chapter in chapters(results, rows) for query in chapter.rows]
    lines = [_search_row(results, query) for query in chosen]
    _draw(Path(out), title, lines, 1 + results.top, captioned=True, progress=progress)


def write_sheet(
    out: Path | str,
    rows: Sequence[tuple[str, Sequence[Path]]],
    *,
    title: str = "",
    progress: Progress = no_progress,
) -> None:
    """Draws rows of pictures, each under its heading, as a PNG.

    Args:
        out: the PNG file.
        rows: a heading and its pictures, for each row.
        title: a line for the top of the sheet.
        progress: told the number of pictures read.

    Raises:
        InputError: there is no picture in any row.
        OutputError: the file cannot be written.
    """
    columns = max((len(paths) for _, paths in rows), default=0)
    if columns == 0:
        raise InputError("There are no pictures to put on the sheet", expected="at least one")
    lines = [_Row(heading, [_Tile(path) for path in paths]) for heading, paths in rows]
    _draw(Path(out), title, lines, columns, captioned=False, progress=progress)


def _search_row(results: SearchResults, query: int) -> _Row:
    asked, hits = results.queries[query], results.hits(query)
    heading = [asked.path.name, *labels(asked)]
    if results.scores is not None:
        score = results.scores[query]
        heading += (
            [f"AP {score.average_precision:.1%}", f"first match at rank {score.first_match:,}"]
            if score
            else ["no match in the gallery"]
        )
    tiles = [
        _Tile(results.gallery[hit.row].path, hit.verdict, f"{hit.rank}:  {distance_text(hit.distance)}") for hit in hits
    ]
    return _Row("  ·  ".join(heading), [_Tile(asked.path, "query", "query"), *tiles])


def _draw(out: Path, title: str, rows: Sequence[_Row], columns: int, *, captioned: bool, progress: Progress) -> None:
    paths = [tile.path for row in rows for tile in row.tiles]
    # Half as much again as the box leaves room for boxes of another shape; memory holds thumbnails only.
    images = thumbnails(paths, 288, progress=progress)
    width, height = box(images, _AREA)
    step = width + 2 * _FRAME + _GAP
    row_height = _HEADING + height + 2 * _FRAME + (_CAPTION if captioned else 0) + _GAP
    top = _MARGIN + (_TITLE if title else 0)
    size = (2 * _MARGIN + columns * step - _GAP, top + len(rows) * row_height - _GAP + _MARGIN)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        _write(draw, (_MARGIN, _MARGIN), title, 22, _INK, size[0] - 2 * _MARGIN)
    for number, row in enumerate(rows):
        y = top + number * row_height
        _write(draw, (_MARGIN, y + 3), row.heading, 14, _INK, size[0] - 2 * _MARGIN)
        for column, tile in enumerate(row.tiles):
            place = (_MARGIN + column * step, y + _HEADING)
            _draw_tile(sheet, place, tile, images[tile.path], (width, height))
    with output_file(out) as temporary:
        sheet.save(temporary, format="PNG")


def _draw_tile(
    sheet: Image.Image, place: tuple[int, int], tile: _Tile, image: Image.Image | None, size: tuple[int, int]
) -> None:
    draw = ImageDraw.Draw(sheet)
    (x, y), (width, height) = place, size
    color = FRAME_COLORS[tile.frame]
    right, bottom = x + width + 2 * _FRAME - 1, y + height + 2 * _FRAME - 1
    draw.rectangle((x, y, right, bottom), fill=_WELL, outline=color, width=_FRAME)
    if image is None:
        _write(draw, (x + _FRAME + 4, y + _FRAME + height // 2 - 18), "unreadable", 13, _INK, width - 8)
        _write(draw, (x + _FRAME + 4, y + _FRAME + height // 2), tile.path.name, 11, _FAINT, width - 8)
    else:
        small = fitted(image, width, height)
        sheet.paste(small, (x + _FRAME + (width - small.width) // 2, y + _FRAME + (height - small.height) // 2))
    if tile.frame in ("right", "wrong"):
        _draw_badge(draw, right - _BADGE + 1, y, tile.frame == "right", color)
    _write(draw, (x, bottom + 4), tile.caption, 13, _FAINT, width + 2 * _FRAME)


def _draw_badge(draw: ImageDraw.ImageDraw, x: int, y: int, right: bool, color: tuple[int, int, int]) -> None:
    # Not everyone tells red from green: a tick or a cross says the same.
    draw.rectangle((x, y, x + _BADGE - 1, y + _BADGE - 1), fill=color)
    if right:
        draw.line([(x + 3, y + 8), (x + 6, y + 11), (x + 12, y + 4)], fill=_PAPER, width=2)
    else:
        draw.line([(x + 4, y + 4), (x + 11, y + 11)], fill=_PAPER, width=2)
        draw.line([(x + 4, y + 11), (x + 11, y + 4)], fill=_PAPER, width=2)


def _write(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int, color: tuple[int, int, int], width: int
) -> None:
    font = ImageFont.load_default(size)
    text = printable(text)
    if draw.textlength(text, font) > width:
        while text and draw.textlength(text + "…", font) > width:
            text = text[:-1]
        text += "…"
    draw.text(place, text, fill=color, font=font)
