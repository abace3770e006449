"""Facts, tables and words, once; and how they become Markdown and a page. Names in them cannot become markup."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from reidkit.report.pages import template
from reidkit.report.results import UNKNOWN, printable


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


Block: TypeAlias = Facts | Table | Points | Words | Code


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
    """

    kind: str
    title: str
    lede: str
    headline: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    footer: str


def as_page(document: Document) -> str:
    """One HTML page: no script, nothing to fetch."""
    # Not what a macro made: that is escaped already.
    page = template("document.html", finalize=lambda value: printable(value) if type(value) is str else value)
    return page.render(document=document, unknown=UNKNOWN)


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
