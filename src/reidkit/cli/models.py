"""`reid models`: the networks that can be built, and what each costs."""

import json
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from reidkit.architecture import CATALOGUE, ModelSpec, named_model
from reidkit.cli import console, options

_USUAL = (256, 128)
_TALL = (384, 128)
_TALL_RECIPES = ("sbs-", "mgn-")
"""Named after recipes of fast-reid's that take higher crops than the others."""


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    height: int
    width: int
    parameters: int
    multiply_adds: int | None
    dim: int


def models(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Of networks, or timm:NAME (default: all by name).")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="HEIGHTxWIDTH", help="Of the crops (default: 256x128; SBS and MGN: 384x128)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print exact numbers as JSON.")] = False,
) -> None:
    """List the networks that reidkit builds, with their parameters, GFLOPs and embedding width."""
    stated = None if size is None else options.parse_size(size)
    specs = {name: named_model(name) for name in names or CATALOGUE}
    rows: list[_Row] = []
    with console.progress_bar("counting") as progress:
        for name, spec in specs.items():
            rows.append(_row(name, spec, stated or (_TALL if name.startswith(_TALL_RECIPES) else _USUAL)))
            progress(len(rows), len(specs))
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        _print(rows)


def _row(name: str, spec: ModelSpec, size: tuple[int, int]) -> _Row:
    from reidkit.models.cost import anatomy  # needs torch

    found = anatomy(spec, size)
    return _Row(name, *size, found.cost.parameters, found.cost.multiply_adds, found.dim)


def _print(rows: list[_Row]) -> None:
    table = console.table(None, "name", "input", "parameters", "GFLOPs", "embedding", numbers=4)
    for row in rows:
        multiply_adds = "" if row.multiply_adds is None else f"{row.multiply_adds / 1e9:.3f}"
        numbers = (f"{row.height} x {row.width}", f"{row.parameters / 1e6:.2f} M", multiply_adds, f"{row.dim}")
        table.add_row(console.escape(row.name), *numbers)
    console.out.print(table)
    console.say("Input is height x width; GFLOPs are of one crop, a multiply-add counted once; no classifier.")
