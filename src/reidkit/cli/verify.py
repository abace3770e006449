"""`reid verify`: does every engine give what the source framework gave?"""

from typing import Annotated

import typer

from reidkit.bundle import open_bundle
from reidkit.cli import console, options
from reidkit.deploy.verify import Parity
from reidkit.deploy.verify import verify as hold
from reidkit.runtime import ENGINES, installed


def verify(
    bundle: options.BundlePath,
    runtime: Annotated[
        list[str] | None, typer.Option("--runtime", help="Engines to check [default: all installed].")
    ] = None,
    device: options.Device = "cpu",
) -> list[Parity]:
    """Hold engines to the golden embeddings; exit with 1 where one is beyond its tolerance."""
    opened = open_bundle(bundle)
    names = options.each_of(ENGINES, runtime, what="runtime") if runtime else installed(opened)
    with console.spinner("verifying"):
        rows = hold(opened, names, device=device)
    table = console.table(
        None, "runtime", "device", "precision", "max abs", "max rel", "at most", "min cosine", "at least", "", numbers=6
    )
    for row in rows:
        verdict = "[green]passed[/]" if row.passed else "[bold red]FAILED[/]"
        numbers = (
            f"{row.max_abs:.1e}",
            f"{row.max_rel:.1e}",
            f"{row.tolerance.relative:g}",
            f"{row.min_cosine:.6f}",
            f"{row.tolerance.cosine:g}",
        )
        table.add_row(row.runtime, row.device, row.precision, *numbers, verdict)
    console.out.print(table)
    if not runtime:
        absent = [name for name in ENGINES if name not in names]
        if absent:
            console.say(f"not checked, because not installed or not able to open this bundle: {', '.join(absent)}")
    if not rows or not all(row.passed for row in rows):
        raise typer.Exit(1)
    return rows
