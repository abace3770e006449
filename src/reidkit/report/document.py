"""Facts, tables and words, once; and how they become Markdown and a page. Names in them cannot become markup."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from reidkit.report.pages import template
from reidkit.report.results import printable


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values."""

    kind: ClassVar = "facts"
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose last `numbers` columns are numbers."""

    kind: ClassVar = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: int


@dataclass(frozen=True, slots=True)
class Points:
    """A list."""

    kind: ClassVar = "points"
    lines: Sequence[str]


@dataclass(frozen=True, slots=True)
class Words:
    """A paragraph."""

    kind: ClassVar = "words"
    text: str


@dataclass(frozen=True, slots=True)
class Code:
    """Commands or plain values, to be copied; with a title, folded away on the page."""

    kind: ClassVar = "code"
    text: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class GridCell:
    """One cell of a grid.

    Attributes:
        text: short; empty where there is nothing, which is then marked.
        share: of the full colour, 0 to 1; None leaves the cell plain.
        best: framed and starred.
        words: what it says, in full.
    """

    text: str = ""
    share: float | None = None
    best: bool = False
    words: str = ""

    @property
    def shown(self) -> str:
        """Its text, with a star if it is the best; a dash where there is nothing."""
        return f"{self.text} \N{BLACK STAR}" if self.best else self.text or "\N{EN DASH}"

    @property
    def look(self) -> str:
        """Its style classes."""
        parts = {"empty": not self.text, "heat": self.share is not None, "best": self.best}
        return " ".join(name for name, holds in parts.items() if holds)


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of numbers by row and column, coloured by value.

    Attributes:
        caption: what it shows.
        corner: what the rows are, and the columns.
        columns: names.
        rows: a name and its cells, for each row.
    """

    kind: ClassVar = "grid"
    caption: str
    corner: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[GridCell]]]


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing: SVG of `reidkit.report.curves`, which goes onto the page as it is. Markdown has its caption alone."""

    kind: ClassVar = "figure"
    caption: str
    svg: str


@dataclass(frozen=True, slots=True)
class Folded:
    """Blocks that the page folds away under a title."""

    kind: ClassVar = "folded"
    title: str
    blocks: Sequence["Facts | Table | Points | Words | Code | Grid | Figure"]


Block: TypeAlias = Facts | Table | Points | Words | Code | Grid | Figure | Folded


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Document:
    """Words and tables, before they are Markdown or a page.

    Attributes:
        kind: what it is, in a word or two.
        title: what it is about.
        lede: that, in a sentence or two.
        headline: names and values that are asked for first.
        sections: the rest.
        footer: where all this comes from.
        wide: whether its tables want the whole width of a screen.
    """

    kind: str
    title: str
    lede: str
    headline: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    footer: str
    wide: bool = False


def as_page(document: Document) -> str:
    """One HTML page: no script, nothing to fetch."""
    return template("document.html").render(document=document)


def as_markdown(document: Document) -> str:
    """Markdown as GitHub reads it."""
    parts = [f"# {_escaped(document.title)}", _line(document.lede)]
    for section in document.sections:
        parts += [f"## {section.title}", *(_markdown(block) for block in section.blocks)]
    return "\n\n".join([*parts, _line(document.footer)]) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Facts():
            return _markdown_table(("", ""), block.rows, 0)
        case Table():
            table = _markdown_table(block.columns, block.rows, block.numbers)
            return f"{_line(block.caption)}:\n\n{table}" if block.caption else table
        case Points():
            return "\n".join(f"- {_line(line)}" for line in block.lines)
        case Words():
            return _line(block.text)
        case Code():
            lines = [printable(line) for line in block.text.split("\n")]
            fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", block.text))])
            code = "\n".join([fence, *lines, fence])
            return f"{_line(block.title)}:\n\n{code}" if block.title else code
        case Grid():
            rows = [(name, *(cell.shown for cell in cells)) for name, cells in block.rows]
            table = _markdown_table((block.corner, *block.columns), rows, len(block.columns))
            return f"{_line(block.caption)}:\n\n{table}" if block.caption else table
        case Figure():
            return _line(block.caption)
        case Folded():
            return "\n\n".join([f"{_line(block.title)}:", *(_markdown(inner) for inner in block.blocks)])


def _markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: int) -> str:
    words = len(columns) - numbers
    rules = ["---"] * words + ["---:"] * numbers
    head, *body = ([_escaped(cell) for cell in row] for row in (columns, *rows))
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rules, *body))


# What means something to Markdown anywhere in a line; an underscore inside a word does not.
_MARKUP = re.compile(r"[\\`*\[\]<>~&$#]|(?<![^\W_])_|_(?![^\W_])")
_OPENING = re.compile(r"^([-+=]|\d+(?=[.)]))")


def _escaped(text: str) -> str:
    # Not every reader of tables knows an escaped bar.
    return _MARKUP.sub(r"\\\g<0>", printable(text).strip()).replace("|", "&#124;")


def _line(text: str) -> str:
    """Text that begins a line: what would make it a list or a rule is escaped, too."""
    text = _escaped(text)
    opening = _OPENING.match(text)
    if opening is None:
        return text
    at = opening.end() if opening[0].isdecimal() else 0
    return f"{text[:at]}\\{text[at:]}"
