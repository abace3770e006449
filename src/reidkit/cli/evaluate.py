"""`reid evaluate`: how well models find people again."""

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from reidkit.bundle import MANIFEST, Bundle, open_bundle, record_accuracy
from reidkit.cli import console, options
from reidkit.cli.measuring import (
    Settings,
    check_engines,
    check_ranking,
    dataset_names,
    load_splits,
    measure,
    model_names,
    rank_embeddings,
)
from reidkit.cli.opening import Tuning
from reidkit.cli.outputs import check_outputs, check_writable, require_libraries, write_each, write_json
from reidkit.errors import ConfigError, DataError
from reidkit.evaluate import FALSE_POSITIVE_RATES, RANKS, EmbeddedBy, Report
from reidkit.evaluate.embeddings_file import read_split
from reidkit.manifest import Accuracy
from reidkit.metrics.roc import rate_text
from reidkit.report.evaluation_csv import write_evaluation_csv
from reidkit.report.results import UNKNOWN
from reidkit.runtime import RUNTIMES
from reidkit.types import Split

_Measured: TypeAlias = tuple[Bundle | None, Report]
"""A report and the model that it is of; None where only its embeddings are known."""


def evaluate(
    bundles: Annotated[
        list[Path] | None, typer.Argument(help="Models: folders NAME.reid.", metavar="BUNDLE...", show_default=False)
    ] = None,
    data: Annotated[list[Path] | None, typer.Option("--data", help="Data sets; may be repeated.")] = None,
    embeddings: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--embeddings", help="Saved embeddings of query and gallery, instead of models and data."),
    ] = None,
    runtime: Annotated[
        list[str] | None, typer.Option("--runtime", help="Engines; may be repeated (default: onnxruntime).")
    ] = None,
    device: options.Device = None,
    precision: options.PrecisionOption = None,
    threads_per_call: options.ThreadsPerCall = None,
    hint: options.HintOption = None,
    optimization: options.OptimizationOption = None,
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
    rank: Annotated[list[int] | None, typer.Option("--rank", min=1, help="Of the CMC (default: 1 5 10).")] = None,
    fpr: Annotated[
        list[float] | None, typer.Option("--fpr", help="False positive rates (default: 1e-4 1e-3 1e-2).")
    ] = None,
    memory: options.Memory = "1GiB",
    cached: options.Cached = True,
    batch: options.BatchSize = 32,
    workers: options.Workers = None,
    skip_unreadable: options.SkipUnreadable = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the reports, fractions of 1.")] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the table, fractions of 1.")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page: CMC and ROC curves, mAP from camera to camera.")
    ] = None,
    record: Annotated[bool, typer.Option("--record", help="Write the results into the bundles' manifests.")] = False,
    data_format: options.DataFormat = None,
    variant: options.DataVariant = None,
) -> list[Report]:
    """Measure CMC, mAP and mINP: every model on every data set with every engine."""
    settings = Settings(
        tta=tta,
        device=device,
        precision=options.parse_precision(precision),
        rebuild=rebuild,
        tuning=Tuning(threads_per_call, hint, optimization),
        batch=batch,
        workers=workers,
        skip_unreadable=skip_unreadable,
        cached=cached,
        protocol=protocol,
        metric=metric,
        refinement=options.refinement(
            dba=dba, query_expansion=query_expansion, alpha=alpha, rerank=rerank, k1=k1, k2=k2, weight=weight
        ),
        memory=options.parse_memory(memory),
        ranks=tuple(dict.fromkeys(rank or RANKS)),
        rates=tuple(dict.fromkeys(fpr or FALSE_POSITIVE_RATES)),
    )
    if html is not None:
        require_libraries("jinja2", "matplotlib")
    check_outputs({"--json": json_file, "--csv": csv_file, "--html": html})
    if embeddings is not None:
        given = {"BUNDLE": bundles, "--data": data, "--runtime": runtime, "--record": record}
        given |= {"--format": data_format, "--variant": variant}
        options.refuse_idle(given | _of_embedding(settings), "beside --embeddings: those were made already")
        measured: Sequence[_Measured] = [(None, _of_files(*embeddings, settings))]
    elif bundles and data:
        splits = load_splits(data, data_format, variant)
        measured = _of_models(bundles, splits, runtime or ["onnxruntime"], settings, record=record)
    else:
        raise ConfigError(
            "Say what to measure", expected="BUNDLE and --data, one or more of each; or --embeddings QUERY GALLERY"
        )
    reports = [report for _, report in measured]
    print_reports(reports)
    if any(report.unmatched or report.lost for report in reports):
        console.say("--json and --html name the queries that were not measured.")
    writers: list[tuple[object, Callable[[], object]]] = []
    if json_file is not None:
        writers.append((json_file, lambda: write_json(json_file, [report.as_dict() for report in reports])))
    if csv_file is not None:
        writers.append((csv_file, lambda: write_evaluation_csv(csv_file, reports)))
    if record:
        manifests = ", ".join(dict.fromkeys(str(bundle.path / MANIFEST) for bundle, _ in measured if bundle))
        writers.append((manifests, lambda: record_measured(measured)))
    if html is not None:
        writers.append((html, lambda: _write_page(html, reports)))
    write_each(writers)
    return reports


def _of_embedding(settings: Settings) -> dict[str, object]:
    """The options of embedding, and whether each asks for something unusual."""
    usual = Settings()
    return {
        "--tta": settings.tta != usual.tta,
        "--device": settings.device != usual.device,
        "--precision": settings.precision != usual.precision,
        "--threads-per-call": settings.tuning.threads is not None,
        "--hint": settings.tuning.hint,
        "--optimization": settings.tuning.optimization,
        "--rebuild": settings.rebuild,
        "--batch": settings.batch != usual.batch,
        "--workers": settings.workers != usual.workers,
        "--skip-unreadable": settings.skip_unreadable,
        "--no-cache": not settings.cached,
    }


def _of_files(query: Path, gallery: Path, settings: Settings) -> Report:
    asked, searched, split = read_split(query, gallery)
    check_ranking(split, settings)
    return rank_embeddings(asked, searched, split, EmbeddedBy(query.name), settings)


def _of_models(
    paths: Sequence[Path], splits: Sequence[Split], runtime: Sequence[str], settings: Settings, *, record: bool
) -> list[_Measured]:
    """Every model on every data set with every engine, once all that can be refused early was not."""
    runtimes = options.each_of(RUNTIMES, list(dict.fromkeys(runtime)), what="runtime")
    settings.tuning.check(runtimes)
    bundles = [open_bundle(path) for path in {path.resolve(): path for path in paths}.values()]
    for split in splits:
        check_ranking(split, settings)
    check_engines(product(bundles, runtimes), device=settings.device, rebuild=settings.rebuild)
    if record:
        for bundle in bundles:
            check_writable(bundle.path / MANIFEST)
    return [
        (bundle, measure(bundle, split, runtime, settings, model=model, dataset=dataset))
        for split, dataset in zip(splits, dataset_names(splits), strict=True)
        for bundle, model in zip(bundles, model_names(bundles), strict=True)
        for runtime in runtimes
    ]


def _write_page(path: Path, reports: Sequence[Report]) -> None:
    from reidkit.report.evaluation_page import write_evaluation_page  # needs jinja2 and matplotlib

    write_evaluation_page(path, reports)


def print_reports(reports: Sequence[Report]) -> None:
    """Prints accuracy as a table, and below it what it was measured on."""
    ranks = reports[0].ranks
    columns = [f"rank-{rank}" for rank in ranks]
    names = ("model", "data", "runtime", "tta")
    table = console.table(None, *names, *columns, "mAP", "95 %", "mINP", numbers=len(columns) + 3)
    for report in reports:
        low, high = report.interval("mAP")
        values = [report.cmc(rank) for rank in ranks] + [report.mean_ap]
        table.add_row(
            *(console.escape(text) for text in (report.embedded.model, report.dataset)),
            *(_engine(report), report.embedded.tta),
            *(f"{100 * value:.2f}" for value in values),
            f"{100 * low:.1f}-{100 * high:.1f}",
            f"{100 * report.mean_inp:.2f}",
        )
    console.out.print(table)
    for counts in dict.fromkeys(_counts(report) for report in reports):  # models of one data set share them
        console.say(counts)
    _print_spread(reports)
    refinement = reports[0].refinement.in_words()
    if refinement != "none":
        console.say(f"Distances refined: {refinement}.")
    _print_rates(reports)
    _print_matrix(reports)


def engine_words(runtime: str, precision: str) -> str:
    """An engine, and its arithmetic where that is not the usual one: "onnxruntime int8"."""
    return runtime if precision in ("float32", UNKNOWN) else f"{runtime} {precision}"


def _engine(report: Report) -> str:
    by = report.embedded
    return "" if by.runtime is None else engine_words(by.runtime, by.precision or UNKNOWN)


def _print_rates(reports: Sequence[Report]) -> None:
    """True positive rates: in a line for one report, in a table of their own for several."""
    found = [(report, rates) for report in reports if (rates := report.true_positive_rates()) is not None]
    if not found:
        return
    if len(found) == 1:
        rates = ", ".join(f"{100 * tpr:.2f} at {rate_text(fpr)}" for fpr, tpr in found[0][1].items())
        console.say(f"True positive rate in percent, at false positive rates: {rates}.")
        return
    columns = [f"TPR@{rate_text(fpr)}" for fpr in reports[0].rates]
    table = console.table(None, "model", "data", "runtime", *columns, numbers=len(columns))
    for report, rates in found:
        table.add_row(
            *(console.escape(text) for text in (report.embedded.model, report.dataset)),
            _engine(report),
            *(f"{100 * tpr:.2f}" for tpr in rates.values()),
        )
    console.out.print(table)


def _counts(report: Report) -> str:
    match = "match from another camera" if report.protocol.junk else "match"
    queries = [f"{report.unmatched} without a {match}"]
    gallery = [f"{report.gallery} crops", f"{report.distractors} distractors"]
    if any(report.unreadable):
        queries.append(f"{report.lost} lost to unreadable pictures")
        gallery.append(f"{report.unreadable.gallery} unreadable")
    valid = f"{report.valid} of {report.queries} queries are valid"
    if report.draws > 1:
        valid += f", {report.valid_per_draw} in one of {report.draws} draws"
        gallery.append(f"{report.gallery_per_draw} in one draw")
    if report.never_asked:
        queries.append(f"{report.never_asked} in no draw")
    return (
        f"{report.dataset}, protocol {report.protocol.name}: {valid}; {', '.join(queries)}. "
        f"Gallery: {', '.join(gallery)}; {report.junk} junk left out."
    )


def _print_spread(reports: Sequence[Report]) -> None:
    """How far the draws lie apart, for each report that has several."""
    for report in reports:
        if report.draws > 1:
            spread = ", ".join(f"{measure} {100 * value:.2f}" for measure, value in report.spread().items())
            engine = f" with {_engine(report)}" if _engine(report) else ""
            console.say(
                f"Standard deviation over the {report.draws} draws, in percent, "
                f"{report.embedded.model}{engine} on {report.dataset}: {spread}."
            )


def _print_matrix(reports: Sequence[Report]) -> None:
    """MAP of every model on every data set, where there are several of both."""
    models = list(dict.fromkeys((report.embedded.model, _engine(report)) for report in reports))
    sets = list(dict.fromkeys(report.dataset for report in reports))
    if len({model for model, _ in models}) < 2 or len(sets) < 2:
        return
    found = {(report.embedded.model, _engine(report), report.dataset): report.mean_ap for report in reports}
    table = console.table("mAP, every model on every data set", "model", "runtime", *sets, numbers=len(sets))
    for model, engine in models:
        values = [f"{100 * found[model, engine, data]:.2f}" for data in sets]
        table.add_row(console.escape(model), engine, *values)
    console.out.print(table)


def record_measured(measured: Sequence[_Measured]) -> None:
    """Writes every measurement into its model's manifest; none, where a part of a data set would stand for the whole.

    Raises:
        DataError: pictures were unreadable, or two measurements have one place.
        OutputError: a manifest cannot be written.
    """
    places: set[tuple[Path, str, str]] = set()
    for bundle, report in measured:
        if any(report.unreadable):
            raise DataError(
                "The accuracy is not recorded, because it was measured without the unreadable pictures",
                got=f"{report.unreadable.query} query and {report.unreadable.gallery} gallery pictures unreadable",
                expected="every picture of the data set",
                fix="repair the pictures, or leave --record out",
            )
        if bundle is None:
            continue
        place = (bundle.path, report.dataset, _engine(report))
        if place in places:
            raise DataError(
                f"The accuracy is not recorded, because {bundle.path} has one place for two measurements",
                got=f"two of {report.dataset} with {_engine(report)}",
                fix="record one at a time",
            )
        places.add(place)
    for bundle, report in measured:
        if bundle is not None:
            record_accuracy(bundle, _accuracy(report))


def _accuracy(report: Report) -> Accuracy:
    by = report.embedded
    return Accuracy(
        dataset=report.dataset,
        protocol=report.protocol.name,
        metric=report.metric,
        runtime=by.runtime or UNKNOWN,
        precision=by.precision or UNKNOWN,
        device=by.device or UNKNOWN,
        rank1=report.cmc(1),
        mAP=report.mean_ap,
        mINP=report.mean_inp,
        queries=report.valid_per_draw,
        gallery=report.gallery_per_draw,
        tta=by.tta,
        refinement=report.refinement.in_words(),
    )
