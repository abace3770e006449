"""`reid demo`: the main job from end to end, on people drawn by program."""

import time
from pathlib import Path
from typing import Annotated

import typer

from reidkit.atomic import output_directory
from reidkit.cli import bench, card, console, data, options, search, train
from reidkit.cli.outcome import Places, finish
from reidkit.cli.outputs import write_json
from reidkit.data import load_split
from reidkit.deploy.verify import Parity
from reidkit.evaluate import Report
from reidkit.manifest import Latency
from reidkit.report.contact_sheet import write_sheet
from reidkit.train.recipe import load_recipe

_MARKER = ".reidkit-demo"


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for everything that the demo makes.")] = Path("demo"),
    overwrite: options.Overwrite = False,
) -> None:
    """Draw people, train, export, verify, measure, time and search: five minutes on two processor cores."""
    started = time.perf_counter()
    with output_directory(out, marker=_MARKER, overwrite=overwrite):
        pass  # an empty folder: nothing of an earlier demo is mistaken for this one's
    people, run, page = out / "people", out / "run", out / "search.html"
    places = Places(out / "demo.reid", out / "demo-card", out / "curves.png")
    _headline("1/4  drawing people")
    data.synth(people)
    _draw_people(people, out / "people.png")
    _headline(
        "2/4  training; the model is exported, verified on every engine, and measured on people it has never seen"
    )
    split = load_split(people)
    train.learn(split, load_recipe("demo"), run)
    outcome = finish(run, places, split, licence="permissive")
    report = outcome.report
    if outcome.status or report is None:
        raise typer.Exit(outcome.status or 2)
    write_json(out / "accuracy.json", [report.as_dict()])
    _headline("3/4  measuring speed")
    latency, plot = out / "latency.csv", out / "latency.png"
    rows = bench.bench(places.bundle, seconds=0.3, csv_file=latency, plot=plot, record=True)
    card.card(places.bundle, places.card, overwrite=True)  # which now says how fast it is, too
    _headline("4/4  searching")
    search.search(places.bundle, page, data=people)
    _summary(report, outcome.parities, rows, time.perf_counter() - started)
    console.say(f"The model: {places.bundle}. Its card: {places.card}.html. How it learned: {places.curves}.")
    console.say(f"The people: {out / 'people.png'}. The latency plot: {plot}.")
    console.out.print(f"[bold]Now open[/] {console.escape(page.resolve().as_uri())}", soft_wrap=True)


def _headline(text: str) -> None:
    console.out.rule(f"[bold]{text}", align="left")


def _draw_people(root: Path, sheet: Path, *, shown: int = 8, pictures: int = 12) -> None:
    split = load_split(root)
    rows: dict[int, list[Path]] = {}
    for crop in split.train:
        rows.setdefault(crop.pid, []).append(crop.path)
    chosen = list(rows.items())[:shown]
    write_sheet(sheet, [(f"identity {split.pid_names[pid]}", paths[:pictures]) for pid, paths in chosen])


def _summary(report: Report, parities: list[Parity], rows: list[Latency], seconds: float) -> None:
    single = min((row for row in rows if row.batch == 1 and not row.decode), key=lambda row: row.median_ms)
    busiest = max((row for row in rows if row.decode), key=lambda row: row.images_per_second)
    table = console.table("What the demo measured", "", "")
    table.add_row("mAP on unseen people", f"{report.mean_ap:.1%}")
    table.add_row("rank-1", f"{report.cmc(1):.1%}")
    table.add_row("mINP", f"{report.mean_inp:.1%}")
    table.add_row("engines that agree with PyTorch", ", ".join(parity.runtime for parity in parities))
    table.add_row("one crop", f"{single.median_ms:.1f} ms on {single.runtime}")
    table.add_row("from JPEG to embedding", f"{busiest.images_per_second:.0f} images/s on {busiest.runtime}")
    table.add_row("the whole demo", f"{seconds:.0f} s")
    console.out.print(table)
