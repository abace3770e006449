"""All commands in one application, and what happens to their errors."""

import shlex
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import reidkit
from reidkit.cli import (
    bench,
    build,
    card,
    compare,
    data,
    demo,
    doctor,
    embed,
    evaluate,
    export,
    import_model,
    info,
    models,
    quantize,
    search,
    train,
    verify,
)
from reidkit.cli.console import note, show_error, warn
from reidkit.cli.extras import explained
from reidkit.errors import ReidkitError

app = typer.Typer(
    name="reid",
    help="Person and vehicle re-identification, from images to production.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        typer.echo(f"reidkit {reidkit.__version__}")
        raise typer.Exit


app.command("demo")(demo.demo)
app.command("models")(models.models)
app.add_typer(data.app, name="data")
app.command("train")(train.train)
app.command("export")(export.export)
app.command("import")(import_model.import_model)
app.command("info")(info.info)
app.command("quantize")(quantize.quantize)
app.command("build")(build.build)
app.command("verify")(verify.verify)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("bench")(bench.bench)
app.command("card")(card.card)
app.command("embed")(embed.embed)
app.command("search")(search.search)
app.command("doctor")(doctor.doctor)


_INTERRUPTED = 130


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status.

    0 when all went well, 1 when a check failed (`reid verify`), 2 when the input or the options are wrong, 130 when
    interrupted.
    """
    try:
        app(args=args, prog_name="reid")
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:
            warn("interrupted; files that were not finished are not there")
        return stop.code if isinstance(stop.code, int) else 1
    except train.InterruptedRun:
        words = list(sys.argv[1:] if args is None else args)
        note(f"to go on: {shlex.join(['reid', *words, *([] if '--resume' in words else ['--resume'])])}")
        return _INTERRUPTED
    except ReidkitError as error:
        show_error(error)
        return 2
    except ModuleNotFoundError as error:
        missing = explained(error)
        if missing is None:
            raise
        show_error(missing)
        return 2
    return 0
