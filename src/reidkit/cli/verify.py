"""`reid verify`: does every engine give what the source framework gave?"""

from collections.abc import Sequence
from typing import Annotated

import typer

from reidkit.bundle import Bundle, open_bundle
from reidkit.cli import console, options
from reidkit.deploy.verify import Parity, Refusal
from reidkit.deploy.verify import verify as hold
from reidkit.errors import RuntimeMissing
from reidkit.runtime import ENGINES, installed


def verify(
    bundle: options.BundlePath,
    runtime: Annotated[
        list[str] | None, typer.Option("--runtime", help="Engines to check (default: all installed).")
    ] = None,
    device: options.Device = None,
) -> list[Parity]:
    """Hold engines to the golden embeddings; exit with 1 where one is beyond its tolerance."""
    rows, passed = hold_engines(open_bundle(bundle), runtime or (), device=device)
    if not passed:
        raise typer.Exit(1)
    return rows


def hold_engines(
    bundle: Bundle, runtime: Sequence[str] = (), *, device: str | None = None
) -> tuple[list[Parity], bool]:
    """Checks engines and prints how near each comes.

    Args:
        bundle: the model.
        runtime: engines to check; none named takes all that are installed.
        device: of the engines.

    Returns:
        The engines that could be compared, and whether all that were to be checked passed, one at least.
    """
    names = options.each_of(ENGINES, runtime, what="runtime") if runtime else installed(bundle)
    with console.spinner("verifying"):
        rows = hold(bundle, names, device=device)
    # An engine that nobody named and that has no such device is no failure; it is said that it was not checked.
    skipped = [
        row for row in rows if not runtime and isinstance(row, Refusal) and isinstance(row.error, RuntimeMissing)
    ]
    rows = [row for row in rows if row not in skipped]
    _print(rows)
    if not runtime:
        absent = [name for name in ENGINES if name not in [row.runtime for row in rows]]
        if absent:
            console.say(f"not checked, because not here or not able to open this bundle: {', '.join(absent)}")
    passed = bool(rows) and all(row.passed for row in rows)
    return [row for row in rows if isinstance(row, Parity)], passed


def _print(rows: list[Parity | Refusal]) -> None:
    columns = ("runtime", "device", "precision", "max abs", "max rel", "at most", "min cosine", "at least", "")
    table = console.table(None, *columns, numbers=6)
    for row in rows:
        if isinstance(row, Refusal):
            table.add_row(row.runtime, row.device, *[""] * 6, "[bold red]FAILED[/]")
            continue
        numbers = (
            f"{row.max_abs:.1e}",
            f"{row.max_rel:.1e}",
            f"{row.tolerance.relative:g}",
            f"{row.min_cosine:.6f}",
            f"{row.tolerance.cosine:g}",
        )
        verdict = "[green]passed[/]" if row.passed else "[bold red]FAILED[/]"
        table.add_row(row.runtime, row.device, row.precision, *numbers, verdict)
    console.out.print(table)
    for row in rows:
        if isinstance(row, Refusal):
            console.show_error(row.error)
