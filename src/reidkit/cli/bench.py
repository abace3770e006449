"""`reid bench`: how fast a model is, here."""

import csv
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated

import typer

from reidkit.atomic import output_file
from reidkit.bundle import open_bundle, record_latency
from reidkit.cli import console, options
from reidkit.cli.outputs import require_libraries
from reidkit.cli.pictures import picture_files
from reidkit.deploy.bench import BATCHES
from reidkit.deploy.bench import bench as measure
from reidkit.errors import ConfigError, RuntimeMissing
from reidkit.manifest import Latency
from reidkit.runtime import ENGINES, installed, load


def bench(
    bundle: options.BundlePath,
    runtime: Annotated[
        list[str] | None, typer.Option("--runtime", help="Engines to time (default: all installed).")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option("--batch", min=1, help="Batch sizes (default: 1 4 16 64).")] = None,
    images: Annotated[
        Path | None, typer.Option("--images", help="Pictures to decode (default: crops drawn by program).")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0, help="To spend on each row.")] = 1.0,
    device: options.Device = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the table to a file.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw the table into a PNG.")] = None,
    record: Annotated[bool, typer.Option("--record", help="Write the rows into the bundle's manifest.")] = False,
) -> list[Latency]:
    """Time each engine at several batch sizes, with and without decoding and resizing."""
    if record and images is not None:
        raise ConfigError(
            "Timings of pictures of your own are not recorded: a card could not say which they were",
            fix="leave --images or --record out",
        )
    opened = open_bundle(bundle)
    names = options.each_of(ENGINES, runtime, what="runtime") if runtime else installed(opened)
    sources = picture_files(images) if images is not None else []
    if plot is not None:
        require_libraries("matplotlib")
    rows: list[Latency] = []
    for name in names:
        try:
            embedder = load(opened, name, device=device)
        except RuntimeMissing as error:
            if runtime:
                raise
            console.warn(f"{name} is left out: {error.problem}")
            continue
        with console.progress_bar(f"timing {name}") as progress:
            rows += measure(embedder, batches=batch or BATCHES, images=sources, seconds=seconds, progress=progress)
    if not rows:
        raise RuntimeMissing(
            "No engine here can run this bundle", got=f"device {device}", fix="install one: reidkit[onnx]"
        )
    _print(rows)
    if record:
        record_latency(opened, rows)
    if csv_file is not None:
        _write_csv(csv_file, rows)
    if plot is not None:
        from reidkit.report.latency_plot import write_latency_plot

        write_latency_plot(plot, rows)
    return rows


def _print(rows: list[Latency]) -> None:
    table = console.table(
        rows[0].machine,  # all rows ran on one device
        "runtime",
        "precision",
        "decode",
        "batch",
        "median ms",
        "p90 ms",
        "images/s",
        "runs",
        numbers=5,
    )
    for row in rows:
        numbers = (f"{row.median_ms:.2f}", f"{row.p90_ms:.2f}", f"{row.images_per_second:.1f}", str(row.runs))
        table.add_row(row.runtime, row.precision, "with" if row.decode else "without", str(row.batch), *numbers)
    console.out.print(table)


def _write_csv(path: Path, rows: list[Latency]) -> None:
    with output_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(Latency)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
