"""`reid card`: what a model is, where it comes from and what it can do, for people."""

from pathlib import Path
from typing import Annotated

import typer

from reidkit.bundle import open_bundle
from reidkit.cli import console, options


def card(
    bundle: options.BundlePath,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="A folder, or the files' name without suffix (default: NAME-card, here)."),
    ] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Write the model card of a bundle, as Markdown and as a page.

    It says what the bundle's manifest says: record accuracy and latency first (`reid evaluate --record`, `reid bench
    --record`), and what is not known stays so.
    """
    from reidkit.report.card import write_card  # needs jinja2

    markdown, page = write_card(open_bundle(bundle), out, overwrite=overwrite)
    console.say(f"wrote {markdown} and {page}")
