"""`reid evaluate`: how well models find people again."""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from reidkit.atomic import output_file
from reidkit.bundle import Bundle, open_bundle, record_accuracy
from reidkit.cli import console, options
from reidkit.cli.measuring import Settings, embed, rank_with_bar
from reidkit.data import load_split
from reidkit.errors import ConfigError, DataError
from reidkit.evaluate import FALSE_POSITIVE_RATES, RANKS, EmbeddedBy, Report
from reidkit.evaluate.embeddings_file import read_embeddings
from reidkit.manifest import Accuracy
from reidkit.report.evaluation_csv import write_evaluation_csv
from reidkit.report.results import UNKNOWN
from reidkit.report.wording import rate_text
from reidkit.runtime import ENGINES, RuntimeName
from reidkit.types import Split


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
    device: options.Device = "cpu",
    protocol: options.ProtocolOption = None,
    metric: options.MetricName = "cosine",
    tta: options.TtaOption = "none",
    dba: options.Dba = 0,
    query_expansion: options.QueryExpansion = 0,
    alpha: options.Alpha = 0.0,
    rerank: options.Rerank = False,
    k1: options.K1 = 20,
    k2: options.K2 = 6,
    weight: options.Weight = 0.3,
    rank: Annotated[list[int] | None, typer.Option("--rank", min=1, help="Of the CMC (default: 1 5 10).")] = None,
    fpr: Annotated[
        list[float] | None, typer.Option("--fpr", help="False positive rates (default: 1e-4 1e-3 1e-2).")
    ] = None,
    memory: options.Memory = "1GiB",
    cached: options.Cached = True,
    batch: options.BatchSize = 32,
    threads: options.Threads = None,
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
        batch=batch,
        threads=threads,
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
    write_page = _page_writer() if html is not None else None
    with ExitStack() as stack:
        # Opened first: a place that cannot be written to costs no embedding.
        json_out, csv_out, page_out = (
            None if path is None else stack.enter_context(output_file(path)) for path in (json_file, csv_file, html)
        )
        if embeddings is not None:
            _refuse_beside_embeddings(bundles=bundles, data=data, runtime=runtime, tta=tta != "none", record=record)
            measured = [(None, _of_files(*embeddings, settings))]
        else:
            runtimes = options.each_of(ENGINES, runtime or ["onnxruntime"], what="runtime")
            measured = _of_models(bundles, data, runtimes, data_format, variant, settings)
        reports = [report for _, report in measured]
        if json_out is not None:
            json_out.write_text(json.dumps([report.as_dict() for report in reports], indent=2) + "\n", encoding="utf-8")
        if csv_out is not None:
            write_evaluation_csv(csv_out, reports)
        if page_out is not None and write_page is not None:
            write_page(page_out, reports, title="Evaluation")
    _print(reports)
    if record:
        _record(measured)
    return reports


def _page_writer() -> Callable[..., None]:
    """Imports what makes the page: jinja2 and matplotlib are found missing before the embedding, not after it."""
    from reidkit.report.evaluation_page import write_evaluation_page

    return write_evaluation_page


def _refuse_beside_embeddings(**given: object) -> None:
    for name, value in given.items():
        if value:
            raise ConfigError(
                f"Saved embeddings need no {name}",
                got=f"--embeddings and {name}",
                expected="one of them",
                fix="leave the other out; saved embeddings were made already",
            )


def _of_files(query: Path, gallery: Path, settings: Settings) -> Report:
    asked, searched = read_embeddings(query, name="query"), read_embeddings(gallery, name="gallery")
    split = Split("embeddings", query, query=asked.crops, gallery=searched.crops)
    return rank_with_bar(asked, searched, split, EmbeddedBy(query.name), settings)


def _of_models(
    bundles: list[Path] | None,
    data: list[Path] | None,
    runtimes: list[RuntimeName],
    data_format: str | None,
    variant: str | None,
    settings: Settings,
) -> list[tuple[Bundle | None, Report]]:
    if not bundles or not data:
        raise ConfigError(
            "Say what to measure", expected="BUNDLE and --data, one or more of each; or --embeddings QUERY GALLERY"
        )
    opened = [open_bundle(path) for path in dict.fromkeys(bundles)]
    splits = [load_split(root, data_format, variant=variant) for root in dict.fromkeys(data)]
    names = [bundle.manifest.name for bundle in opened]
    measured: list[tuple[Bundle | None, Report]] = []
    for split in splits:
        for bundle in opened:
            # Two models of one name are told apart by their places.
            name = bundle.manifest.name if names.count(bundle.manifest.name) == 1 else str(bundle.path)
            for runtime in dict.fromkeys(runtimes):
                query, gallery, embedded = embed(bundle, split, runtime, settings, name=name)
                measured.append((bundle, rank_with_bar(query, gallery, split, embedded, settings)))
    return measured


def _print(reports: Sequence[Report]) -> None:
    ranks = reports[0].ranks
    columns = [f"rank-{rank}" for rank in ranks]
    names = ("model", "data", "runtime", "tta")
    table = console.table(None, *names, *columns, "mAP", "95 %", "mINP", numbers=len(columns) + 3)
    for report in reports:
        low, high = report.intervals()["mAP"]
        values = [report.cmc(rank) for rank in ranks] + [report.mean_ap]
        table.add_row(
            *(console.escape(text) for text in (report.embedded.model, report.dataset)),
            *(report.embedded.runtime or "", report.embedded.tta),
            *(f"{100 * value:.2f}" for value in values),
            f"{100 * low:.1f}-{100 * high:.1f}",
            f"{100 * report.mean_inp:.2f}",
        )
    console.out.print(table)
    for report in {report.dataset: report for report in reports}.values():
        console.say(_counts(report))
    refinement = reports[0].refinement.in_words()
    if refinement != "none":
        console.say(f"Distances refined: {refinement}.")
    _print_rates(reports)
    _print_matrix(reports)


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
            report.embedded.runtime or "",
            *(f"{100 * tpr:.2f}" for tpr in rates.values()),
        )
    console.out.print(table)


def _counts(report: Report) -> str:
    match = "match from another camera" if report.protocol.junk else "match"
    text = (
        f"{report.dataset}, protocol {report.protocol.name}: {report.valid} of {report.queries} queries are valid; "
        f"{report.unmatched} without a {match}"
    )
    found = f"Gallery: {report.gallery} crops, {report.distractors} distractors"
    if any(report.unreadable):
        text += f", {report.lost} lost to unreadable pictures"
        found += f", {report.unreadable.gallery} unreadable"
    if len(report.rankings) > 1:
        found += f", {len(report.rankings)} draws"
    return f"{text}. {found}; {report.junk} junk left out."


def _print_matrix(reports: Sequence[Report]) -> None:
    """MAP of every model on every data set, where there are several of both."""
    models = list(dict.fromkeys((report.embedded.model, report.embedded.runtime) for report in reports))
    sets = list(dict.fromkeys(report.dataset for report in reports))
    if len({model for model, _ in models}) < 2 or len(sets) < 2:
        return
    found = {(report.embedded.model, report.embedded.runtime, report.dataset): report.mean_ap for report in reports}
    table = console.table("mAP, every model on every data set", "model", "runtime", *sets, numbers=len(sets))
    for model, runtime in models:
        values = [f"{100 * found[model, runtime, data]:.2f}" for data in sets]
        table.add_row(console.escape(model), runtime or "", *values)
    console.out.print(table)


def _record(measured: Sequence[tuple[Bundle | None, Report]]) -> None:
    """Writes every measurement into its model's manifest, or none: a part of a data set is not taken for the whole."""
    for _, report in measured:
        if any(report.unreadable):
            raise DataError(
                "The accuracy is not recorded, because it was measured without the unreadable pictures",
                got=f"{report.unreadable.query} query and {report.unreadable.gallery} gallery pictures unreadable",
                expected="every picture of the data set",
                fix="repair the pictures, or leave --record out",
            )
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
        queries=report.valid,
        gallery=report.gallery,
        tta=by.tta,
        refinement=report.refinement.in_words(),
    )
