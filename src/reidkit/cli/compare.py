"""`reid compare`: whether two models, or two engines, differ beyond chance, and on which queries."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from reidkit.bundle import open_bundle
from reidkit.cli import console, options
from reidkit.cli.measuring import Settings, check_engines, check_ranking, measure, model_names
from reidkit.cli.outputs import check_outputs, require_libraries, write_each, write_json
from reidkit.data import load_split
from reidkit.errors import ConfigError
from reidkit.evaluate import Comparison, EmbeddedBy, Report, compare_reports
from reidkit.index import NearestScorer
from reidkit.report.results import Picture, SearchResults, pictures
from reidkit.runtime import RUNTIMES, RuntimeName
from reidkit.types import Crop, Precision, Split


def compare(
    a: Annotated[Path, typer.Argument(help="A: a folder NAME.reid.", metavar="A")],
    b: Annotated[Path, typer.Argument(help="B: another, or A again on another engine.", metavar="B")],
    data: options.DataRoot,
    runtime: Annotated[
        list[str] | None, typer.Option("--runtime", help="Engine of both; given twice, of A and of B.")
    ] = None,
    device: options.Device = None,
    precision: Annotated[
        list[str] | None, typer.Option("--precision", help="Of both: fp32, fp16 ...; given twice, of A and of B.")
    ] = None,
    rebuild: options.Rebuild = False,
    protocol: options.ProtocolOption = None,
    metric: options.MetricName = "cosine",
    tta: options.TtaOption = "none",
    dba: options.Dba = 0,
    query_expansion: options.QueryExpansion = 0,
    alpha: options.Alpha = 0.0,
    rerank: options.Rerank = False,
    k1: options.K1 = None,
    k2: options.K2 = None,
    weight: options.Weight = None,
    memory: options.Memory = "1GiB",
    cached: options.Cached = True,
    batch: options.BatchSize = 32,
    workers: options.Workers = None,
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
        rebuild=rebuild,
        batch=batch,
        workers=workers,
        cached=cached,
        protocol=protocol,
        metric=metric,
        refinement=options.refinement(
            dba=dba, query_expansion=query_expansion, alpha=alpha, rerank=rerank, k1=k1, k2=k2, weight=weight
        ),
        memory=options.parse_memory(memory),
    )
    engines, precisions = _engines(runtime), _precisions(precision)
    if html is not None:
        require_libraries("jinja2")
    check_outputs({"--html": html, "--json": json_file})
    bundles = [open_bundle(path) for path in (a, b)]
    split = load_split(data, data_format, variant=variant)
    check_ranking(split, settings)
    check_engines(zip(bundles, engines, strict=True), device=device, rebuild=rebuild)
    sides: list[tuple[Report, SearchResults]] = []
    for bundle, engine, arithmetic, model in zip(bundles, engines, precisions, model_names(bundles), strict=True):
        found = NearestScorer((len(split.query), len(split.gallery)), top)
        report = measure(bundle, split, engine, replace(settings, precision=arithmetic), model=model, scorers=[found])
        sides.append((report, _results(split, found)))
    (before, found_before), (after, found_after) = sides
    comparison = compare_reports(before, after)
    names = _names(before.embedded, after.embedded)
    _print(comparison, names, settings)
    writers: list[tuple[object, Callable[[], object]]] = []
    if json_file is not None:
        writers.append((json_file, lambda: write_json(json_file, comparison.as_dict(*names))))
    if html is not None:
        results = (found_before, found_after)
        writers.append((html, lambda: _write_page(html, comparison, results, names, settings, max_queries)))
    write_each(writers)
    return comparison


def _precisions(precision: list[str] | None) -> tuple[Precision | None, Precision | None]:
    found: list[Precision | None] = [options.parse_precision(text) for text in precision or [None]]
    if len(found) > 2:
        raise ConfigError(
            "Two models are compared, in a precision each",
            got=f"{len(found)} times --precision",
            expected="once or twice",
        )
    return found[0], found[-1]


def _engines(runtime: list[str] | None) -> tuple[RuntimeName, RuntimeName]:
    names = options.each_of(RUNTIMES, runtime or ["onnxruntime"], what="runtime")
    if len(names) > 2:
        raise ConfigError(
            "Two models are compared, on an engine each", got=f"{len(names)} times --runtime", expected="once or twice"
        )
    return names[0], names[-1]


def _names(a: EmbeddedBy, b: EmbeddedBy) -> tuple[str, str]:
    """What to call both sides: by model, and by engine and precision where these differ; or as A and B."""
    one, other = a.model, b.model
    if a.runtime != b.runtime:
        one, other = f"{one}, {a.runtime}", f"{other}, {b.runtime}"
    if a.precision != b.precision:
        one, other = f"{one}, {a.precision}", f"{other}, {b.precision}"
    return (one, other) if one != other else (f"{one} (A)", f"{other} (B)")


def _results(split: Split, found: NearestScorer) -> SearchResults:
    def named(crops: Sequence[Crop]) -> list[Picture]:
        return pictures(crops, pid_names=split.pid_names, camera_names=split.camera_names)

    return SearchResults(named(split.query), named(split.gallery), found.neighbors())


def _write_page(
    path: Path,
    comparison: Comparison,
    results: tuple[SearchResults, SearchResults],
    names: tuple[str, str],
    settings: Settings,
    limit: int,
) -> None:
    from reidkit.report.comparison_page import write_comparison_page  # needs jinja2

    with console.progress_bar("drawing page") as progress:
        write_comparison_page(
            path, comparison, results, names=names, facts=settings.unusual(), limit=limit, progress=progress
        )


def _print(comparison: Comparison, names: tuple[str, str], settings: Settings) -> None:
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
    for name, value in settings.unusual().items():
        console.say(f"Both with {name} {value}.")
