"""The files that a command writes at its end: tried before the work, written each on its own."""

import importlib
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import typer

from reidkit.atomic import output_file
from reidkit.cli.console import say, show_error
from reidkit.errors import ConfigError, OutputError, ReidkitError


def check_outputs(places: Mapping[str, Path | None]) -> None:
    """Refuses files that could not be written: asked first, it spares the work.

    Args:
        places: of the files, by the option that names them; None where nothing is to be written.

    Raises:
        ConfigError: two of them are the same file.
        OutputError: one cannot be written; see `reidkit.atomic.output_file`.
    """
    taken: dict[Path, str] = {}
    for option, path in places.items():
        if path is None:
            continue
        other = taken.setdefault(path.resolve(), option)
        if other != option:
            raise ConfigError(f"{other} and {option} name one file", got=path, fix="give each a name of its own")
        check_writable(path)


def check_writable(path: Path) -> None:
    """Makes a temporary file beside `path`, and takes it away again.

    Raises:
        OutputError: as `reidkit.atomic.output_file`.
    """
    with suppress(_TriedError), output_file(path):
        raise _TriedError


class _TriedError(Exception):
    """Leaves `output_file` without a file."""


def require_libraries(*names: str) -> None:
    """Imports what only the end of a command needs: found missing now, not after an hour of embedding.

    Raises:
        ModuleNotFoundError: one is not installed.
    """
    for name in names:
        importlib.import_module(name)


def write_each(writers: Iterable[tuple[object, Callable[[], object]]]) -> None:
    """Writes one file after another, and says so; one that fails costs none of the others.

    Args:
        writers: where each writes, and what does it.

    Raises:
        typer.Exit: with status 2, where one failed; why was printed.
    """
    failed = False
    for place, write in writers:
        try:
            write()
        except (ReidkitError, OSError) as error:
            failed = True
            show_error(error if isinstance(error, ReidkitError) else OutputError(f"A file cannot be written: {error}"))
        else:
            say(f"wrote {place}")
    if failed:
        raise typer.Exit(2)


def write_json(path: Path, values: object) -> None:
    """Writes plain values for other programs.

    Raises:
        OutputError: the file cannot be written.
    """
    with output_file(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
