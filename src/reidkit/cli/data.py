"""`reid data`: data sets, looked at and drawn."""

import json
from pathlib import Path
from typing import Annotated

import typer

from reidkit.cli import console, options
from reidkit.config import to_dict
from reidkit.data import FORMATS, Inspection, inspect_split, load_split
from reidkit.data.synth import synthesize
from reidkit.types import SUBSETS

app = typer.Typer(no_args_is_help=True, help="Data sets: look at one, or draw one.")


@app.command("inspect")
def inspect(
    root: Annotated[Path, typer.Argument(help="A data set: " + ", ".join(FORMATS) + ".")],
    data_format: options.DataFormat = None,
    variant: options.DataVariant = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    all_paths: Annotated[bool, typer.Option("--all", help="List every picture that a finding is about.")] = False,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads that look at pictures.")] = None,
) -> None:
    """Show identities, crops and cameras of each subset, and warn of what is wrong with them; exit with 1 on errors."""
    split = load_split(root, data_format, variant=variant)
    with console.progress_bar("reading") as progress:
        inspection = inspect_split(split, threads=threads, progress=progress)
    if as_json:
        typer.echo(json.dumps(to_dict(inspection), indent=2))
    else:
        _print(inspection, limit=None if all_paths else 5)
    if inspection.errors:
        raise typer.Exit(1)


@app.command("synth")
def synth(
    out: Annotated[Path, typer.Argument(help="Folder to write, in Market-1501 layout.")],
    identities: Annotated[int, typer.Option("--identities", help="People, half of them to train on.")] = 60,
    cameras: Annotated[int, typer.Option("--cameras", help="Cameras.")] = 4,
    crops_per_camera: Annotated[int, typer.Option("--crops-per-camera", help="Of each person in each camera.")] = 8,
    seed: Annotated[int, typer.Option("--seed", help="The same seed draws the same pictures.")] = 0,
    overwrite: options.Overwrite = False,
) -> None:
    """Draw pedestrians by program: a data set to try everything on."""
    with console.progress_bar("drawing") as progress:
        path = synthesize(
            out,
            identities=identities,
            cameras=cameras,
            crops_per_camera=crops_per_camera,
            seed=seed,
            overwrite=overwrite,
            progress=progress,
        )
    console.say(f"wrote {path}")


def _print(inspection: Inspection, *, limit: int | None) -> None:
    title = f"{inspection.format}: {console.escape(str(inspection.root))}"
    columns = ("subset", "identities", "crops", "cameras", "crops per identity (min, median, max)")
    table = console.table(title, *columns, numbers=4)
    for name in SUBSETS:
        facts = getattr(inspection, name)
        spread = facts.crops_per_identity
        counts = "-" if spread is None else f"{spread.min}, {spread.median:g}, {spread.max}"
        table.add_row(name, f"{facts.identities:,}", f"{facts.crops:,}", f"{facts.cameras:,}", counts)
    console.out.print(table)
    console.say(
        f"{inspection.valid_queries:,} of {inspection.query.crops:,} queries are valid; "
        f"{inspection.distractors:,} distractors, {inspection.junk:,} junk"
    )
    colors = {"error": "bold red", "warning": "yellow", "info": "cyan"}
    for finding in inspection.findings:
        color = colors[finding.severity]
        console.out.print(f"[{color}]{finding.severity}:[/] {console.escape(finding.sentence)}", highlight=False)
        total = len(finding.paths)
        shown = finding.examples(total if limit is None else limit)
        for example in shown:
            console.say(f"  {example}")
        if total > len(shown):
            console.say(f"  … and {total - len(shown):,} more (--all lists them)")
