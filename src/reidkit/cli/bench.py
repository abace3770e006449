"""`reid bench`: how fast a model is, here."""

import csv
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated

import typer

from reidkit.atomic import output_file
from reidkit.bundle import open_bundle, record_latency
from reidkit.cli import console, options
from reidkit.cli.opening import Tuning, open_way
from reidkit.cli.outputs import require_libraries
from reidkit.cli.pictures import picture_files
from reidkit.deploy.bench import BATCHES
from reidkit.deploy.bench import bench as measure
from reidkit.deploy.ways import ways_of
from reidkit.errors import ConfigError, RuntimeMissing
from reidkit.manifest import Latency
from reidkit.runtime import RUNTIMES, installed


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
    precision: options.PrecisionsOption = None,
    threads_per_call: options.ThreadsPerCall = None,
    hint: options.HintOption = None,
    optimization: options.OptimizationOption = None,
    rebuild: options.Rebuild = False,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the table to a file.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw the table into a PNG.")] = None,
    record: Annotated[bool, typer.Option("--record", help="Write the rows into the bundle's manifest.")] = False,
) -> list[Latency]:
    """Time each engine in each precision at several batch sizes, with and without decoding and resizing.

    Of tensorrt, what `reid build` has made is timed. GPU time is the device's own, without copies to it and back.
    """
    if record and images is not None:
        raise ConfigError(
            "Timings of pictures of your own are not recorded: a card could not say which they were",
            fix="leave --images or --record out",
        )
    tuning = Tuning(threads_per_call, hint, optimization)
    if record and tuning != Tuning():
        raise ConfigError(
            "Timings with options of an engine are not recorded: a card could not say which they were",
            fix="leave --record out, or --threads-per-call, --hint and --optimization",
        )
    opened = open_bundle(bundle)
    names = options.each_of(RUNTIMES, runtime, what="runtime") if runtime else installed(opened)
    tuning.check(names)
    ways = ways_of(opened, names, options.parse_precisions(precision), device=device)
    sources = picture_files(images) if images is not None else []
    if plot is not None:
        require_libraries("matplotlib")
    rows: list[Latency] = []
    for way in ways:
        try:
            with console.spinner(f"opening {way.in_words()}"):
                embedder = open_way(way, opened, device=device, rebuild=rebuild, tuning=tuning)
        except RuntimeMissing as error:
            if runtime and (not precision or len(ways) == 1):
                raise
            console.warn(f"{way.in_words()} is left out: {error.problem}")
            continue
        with console.progress_bar(f"timing {way.in_words()}") as progress:
            rows += measure(embedder, batches=batch or BATCHES, images=sources, seconds=seconds, progress=progress)
        del embedder  # the next one may want the memory
    if not rows:
        raise RuntimeMissing(
            "None of these engines can run this bundle here",
            got=f"device {device or 'not named'}",
            fix="name another --runtime or --device; `reid doctor` says what is here",
        )
    _print(rows)
    if record:
        record_latency(opened, rows)
        console.say(f"recorded in {opened.path}")
    if csv_file is not None:
        _write_csv(csv_file, rows)
        console.say(f"wrote {csv_file}")
    if plot is not None:
        from reidkit.report.latency_plot import write_latency_plot

        write_latency_plot(plot, rows)
        console.say(f"wrote {plot}")
    return rows


def _print(rows: list[Latency]) -> None:
    for machine in dict.fromkeys(row.machine for row in rows):
        here = [row for row in rows if row.machine == machine]
        times = {
            "decode": ["with" if row.decode else "without" for row in here],
            "batch": [str(row.batch) for row in here],
            "median ms": [f"{row.median_ms:.2f}" for row in here],
            "p90 ms": [f"{row.p90_ms:.2f}" for row in here],
            "GPU ms": [_number(row.gpu_ms, ".3f") for row in here],
            "images/s": [f"{row.images_per_second:.1f}" for row in here],
            "runs": [str(row.runs) for row in here],
        }
        _print_table(machine, here, times)
    last = {(row.runtime, row.precision, row.via): row for row in rows}  # which holds what all batches took
    engines = [row for row in last.values() if row.device_memory is not None or row.engine_bytes is not None]
    if engines:
        facts = {
            "GPU MB": [_number(row.device_memory, ".0f", 1e-6) for row in engines],
            "engine MB": [_number(row.engine_bytes, ".1f", 1e-6) for row in engines],
            "build s": [_number(row.build_seconds, ".0f") for row in engines],
        }
        _print_table(None, engines, facts)


def _print_table(title: str | None, rows: list[Latency], columns: dict[str, list[str]]) -> None:
    """One table; what no row can say has no column."""
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    table = console.table(title, "runtime", "precision", *columns, numbers=len(columns) - ("decode" in columns))
    for row, *cells in zip(rows, *columns.values(), strict=True):
        table.add_row(row.runtime if row.via is None else f"{row.runtime} by {row.via}", row.precision, *cells)
    console.out.print(table)


def _number(value: float | int | None, form: str, factor: float = 1.0) -> str:
    return "" if value is None else format(value * factor, form)


def _write_csv(path: Path, rows: list[Latency]) -> None:
    with output_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(Latency)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
