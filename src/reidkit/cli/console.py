"""What every command draws with: results on standard output, progress and complaints on standard error."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape as escape  # noqa: PLC0414 (for the commands that print markup)
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from reidkit import types
from reidkit.errors import ImageError, ReidkitError
from reidkit.report.results import printable

_WIDTH = 120  # of a pipe or a file, where nobody's window says how wide a table may be

# A path may hold :fire: or [bold]; only what is written here as markup is markup.
out = Console(emoji=False)
err = Console(stderr=True, emoji=False)
if not out.is_terminal:
    out = Console(width=_WIDTH, emoji=False)


@contextmanager
def progress_bar(label: str) -> Iterator[types.Progress]:
    """Draws a bar while the block runs; yields the callback that moves it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def spinner(label: str) -> Iterator[None]:
    """Turns while the block runs, for work that cannot say how far it is."""
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=err) as progress:
        progress.add_task(label, total=None)
        yield


def table(title: str | None, *columns: str, numbers: int = 0) -> Table:
    """A table whose last `numbers` columns are aligned to the right."""
    result = Table(title=None if title is None else Text(title), title_justify="left", show_edge=False)
    for i, column in enumerate(columns):
        number = i >= len(columns) - numbers
        result.add_column(Text(column), justify="right" if number else "left", no_wrap=number, overflow="fold")
    return result


def say(text: str) -> None:
    """Prints a line of plain text: file names can hold markup, control characters and bytes that are no text."""
    out.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """Prints a line of plain text about work that goes on; above a bar or a table that is being drawn."""
    _complain(None, "", text)


def hush() -> None:
    """Prints only errors from here on, for a process whose work another one reports."""
    out.quiet = True


def show_error(error: ReidkitError) -> None:
    """Prints an error: its first line in red."""
    first, *rest = str(error).splitlines()
    _complain("error:", "bold red", first)
    for line in rest:
        _complain(None, "", line)


def warn(text: str) -> None:
    """Prints a warning."""
    _complain("warning:", "yellow", text)


def warn_unreadable(errors: tuple[ImageError, ...], *, shown: int = 10) -> None:
    """Lists pictures that were left out."""
    if errors:
        warn(f"{len(errors)} pictures cannot be read and were left out:")
        for error in errors[:shown]:
            _complain(None, "", f"  {error.problem}")
        if len(errors) > shown:
            _complain(None, "", f"  … and {len(errors) - shown} more")


def _complain(label: str | None, style: str, text: str) -> None:
    text = printable(text)
    line = Text(text) if label is None else Text.assemble((label, style), " ", text)
    err.print(line, highlight=False, soft_wrap=True)
