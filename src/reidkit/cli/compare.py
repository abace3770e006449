"""`reid compare`: whether two models, or two engines, differ beyond chance, and on which queries."""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from reidkit.atomic import output_file
from reidkit.bundle import open_bundle
from reidkit.cli import console, options
from reidkit.cli.measuring import Settings, embed, rank_with_bar
from reidkit.data import load_split
from reidkit.errors import ConfigError
from reidkit.evaluate import Comparison, EmbeddedBy, Report, compare_reports
from reidkit.index import NearestScorer, Neighbors
from reidkit.report.results import Picture, SearchResults, pictures, scores
from reidkit.runtime import ENGINES, RuntimeName
from reidkit.types import Crop, Split


def compare(
    a: Annotated[Path, typer.Argument(help="A: a folder NAME.reid.", metavar="A")],
    b: Annotated[Path, typer.Argument(help="B: another, or A again on another engine.", metavar="B")],
    data: options.DataRoot,
    runtime: Annotated[
        list[str] | None, typer.Option("--runtime", help="Engine of both; given twice, of A and of B.")
    ] = None,
    device: options.Device = "cpu",
    protocol: options.ProtocolOption = None,
    metric: options.MetricName = "cosine",
    tta: options.TtaOption = "none",
    memory: options.Memory = "1GiB",
    cached: options.Cached = True,
    batch: options.BatchSize = 32,
    threads: options.Threads = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page with the queries that changed most, as pictures.")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Crops to show for each query.")] = 10,
    max_queries: Annotated[int, typer.Option("--max-queries", min=1, help="Queries to show on the page.")] = 30,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the differences, fractions of 1.")] = None,
    data_format: options.DataFormat = None,
    variant: options.DataVariant = None,
) -> Comparison:
    """Say whether two models or two engines differ beyond chance, query by query."""
    settings = Settings(
        tta=tta,
        device=device,
        batch=batch,
        threads=threads,
        cached=cached,
        protocol=protocol,
        metric=metric,
        memory=options.parse_memory(memory),
    )
    engines = _engines(runtime)
    write_page = _page_writer() if html is not None else None
    with ExitStack() as stack:
        page, values = (None if path is None else stack.enter_context(output_file(path)) for path in (html, json_file))
        bundles = [open_bundle(path) for path in (a, b)]
        split = load_split(data, data_format, variant=variant)
        sides: list[tuple[Report, SearchResults]] = []
        for bundle, engine in zip(bundles, engines, strict=True):
            query, gallery, by = embed(bundle, split, engine, settings)
            found = NearestScorer((len(query.crops), len(gallery.crops)), top)
            report = rank_with_bar(query, gallery, split, by, settings, scorers=[found])
            sides.append((report, _results(report, found.neighbors(), split)))
        (before, found_before), (after, found_after) = sides
        comparison = compare_reports(before, after)
        names = _names(before.embedded, after.embedded)
        if values is not None:
            values.write_text(json.dumps(_as_dict(comparison, names), indent=2) + "\n", encoding="utf-8")
        if page is not None and write_page is not None:
            with console.progress_bar("drawing page") as progress:
                write_page(
                    page, comparison, (found_before, found_after), names=names, limit=max_queries, progress=progress
                )
    _print(comparison, names)
    return comparison


def _page_writer() -> Callable[..., None]:
    """Imports what makes the page: jinja2 is found missing before the embedding, not after it."""
    from reidkit.report.comparison_page import write_comparison_page

    return write_comparison_page


def _engines(runtime: list[str] | None) -> tuple[RuntimeName, RuntimeName]:
    names = options.each_of(ENGINES, runtime or ["onnxruntime"], what="runtime")
    if len(names) > 2:
        raise ConfigError(
            "Two models are compared, on an engine each", got=f"{len(names)} times --runtime", expected="once or twice"
        )
    return names[0], names[-1]


def _names(a: EmbeddedBy, b: EmbeddedBy) -> tuple[str, str]:
    """What to call both sides: by model, by engine, or by both, whichever tells them apart."""
    if a.model != b.model:
        return (a.model, b.model) if a.runtime == b.runtime else (f"{a.model}, {a.runtime}", f"{b.model}, {b.runtime}")
    if a.runtime != b.runtime:
        return f"{a.model}, {a.runtime}", f"{b.model}, {b.runtime}"
    return f"{a.model} (A)", f"{b.model} (B)"


def _results(report: Report, found: Neighbors, split: Split) -> SearchResults:
    def named(crops: Sequence[Crop]) -> list[Picture]:
        return pictures(crops, pid_names=split.pid_names, camera_names=split.camera_names)

    return SearchResults(named(split.query), named(split.gallery), found, scores(report.rankings[0]))


def _as_dict(comparison: Comparison, names: tuple[str, str]) -> dict[str, object]:
    return {
        "a": comparison.a.as_dict(),
        "b": comparison.b.as_dict(),
        "verdict": comparison.in_words(*names),
        "differ": comparison.differ,
        "measures": [
            {
                "measure": change.measure,
                "a": change.a,
                "b": change.b,
                "difference": change.paired.difference,
                "interval": list(change.paired.interval),
                "p": change.paired.p_value,
            }
            for change in comparison.measures
        ],
        "queries": [
            {"query": comparison.a.crops[change.row].path.name, "a": change.a, "b": change.b}
            for change in comparison.queries
        ],
    }


def _print(comparison: Comparison, names: tuple[str, str]) -> None:
    table = console.table(comparison.a.dataset, "", *names, "difference", "95 %", "p", numbers=5)
    for change in comparison.measures:
        low, high = change.paired.interval
        table.add_row(
            change.measure,
            *(f"{100 * value:.2f}" for value in (change.a, change.b)),
            f"{100 * change.paired.difference:+.2f}",
            f"{100 * low:+.2f} to {100 * high:+.2f}",
            f"{change.paired.p_value:.2g}",
        )
    console.out.print(table)
    console.say(comparison.in_words(*names))
