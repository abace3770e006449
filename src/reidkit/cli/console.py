"""What every command draws with: results on standard output, progress and complaints on standard error."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
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

from reidkit import types
from reidkit.errors import ImageError, ReidkitError

_WIDTH = 120  # of a pipe or a file, where nobody's window says how wide a table may be

out = Console()
err = Console(stderr=True)
if not out.is_terminal:
    out = Console(width=_WIDTH)


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
    result = Table(title=title, title_justify="left", show_edge=False)
    for i, column in enumerate(columns):
        number = i >= len(columns) - numbers
        result.add_column(column, justify="right" if number else "left", no_wrap=number, overflow="fold")
    return result


def say(text: str) -> None:
    """Prints a line of plain text; what looks like markup in a file name stays as it is."""
    out.print(escape(text), highlight=False, soft_wrap=True)


def show_error(error: ReidkitError) -> None:
    """Prints an error: its first line in red."""
    first, *rest = str(error).splitlines()
    err.print(f"[bold red]error:[/] {escape(first)}", highlight=False, soft_wrap=True)
    for line in rest:
        err.print(escape(line), highlight=False, soft_wrap=True)


def warn(text: str) -> None:
    """Prints a warning."""
    err.print(f"[yellow]warning:[/] {escape(text)}", highlight=False, soft_wrap=True)


def warn_unreadable(errors: tuple[ImageError, ...], *, shown: int = 10) -> None:
    """Lists pictures that were left out."""
    if errors:
        warn(f"{len(errors)} pictures cannot be read and were left out:")
        for error in errors[:shown]:
            err.print(f"  {escape(error.problem)}", highlight=False, soft_wrap=True)
        if len(errors) > shown:
            err.print(f"  … and {len(errors) - shown} more", highlight=False)
