"""`reid evaluate`: how well a model finds people again."""

import json
from pathlib import Path
from typing import Annotated

import typer

from reidkit.atomic import output_file
from reidkit.bundle import Accuracy, open_bundle, record_accuracy
from reidkit.cli import console, options
from reidkit.data import load_split
from reidkit.evaluate import PROTOCOL, RANKS, Report
from reidkit.evaluate import evaluate as measure
from reidkit.runtime import load


def evaluate(
    bundle: options.BundlePath,
    data: options.DataRoot,
    runtime: options.Runtime = "onnxruntime",
    device: options.Device = "cpu",
    metric: options.MetricName = "cosine",
    batch: options.BatchSize = 32,
    threads: options.Threads = None,
    skip_unreadable: options.SkipUnreadable = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the report, fractions of 1, to a file.")
    ] = None,
    record: Annotated[bool, typer.Option("--record", help="Write the result into the bundle's manifest.")] = False,
    data_format: options.DataFormat = None,
    variant: options.DataVariant = None,
) -> Report:
    """Measure rank-1/5/10, mAP and mINP under the Market-1501 protocol."""
    opened = open_bundle(bundle)
    embedder = load(opened, runtime, device=device)
    split = load_split(data, data_format, variant=variant)
    with console.progress_bar("embedding") as progress:
        report = measure(
            embedder,
            split,
            metric=metric,
            batch_size=batch,
            threads=threads,
            unreadable="skip" if skip_unreadable else "raise",
            progress=progress,
        )
    _print(report)
    if json_file is not None:
        with output_file(json_file) as temporary:
            temporary.write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
    if record:
        record_accuracy(opened, _accuracy(report))
    return report


def _print(report: Report) -> None:
    ranking = report.ranking
    ranks = [f"rank-{rank}" for rank in RANKS]
    table = console.table(None, "data", "runtime", *ranks, "mAP", "mINP", numbers=len(ranks) + 2)
    values = [*(ranking.cmc(rank) for rank in RANKS), ranking.mean_ap, ranking.mean_inp]
    table.add_row(console.escape(report.dataset), report.runtime, *(f"{100 * value:.2f}" for value in values))
    console.out.print(table)
    valid, total = int(ranking.valid.sum()), len(ranking.valid)
    console.say(
        f"{valid} of {total} queries are valid; {total - valid} have no match from another camera. Gallery: "
        f"{report.gallery} crops, {report.distractors} distractors; {report.junk} junk left out."
    )
    if report.unreadable:
        console.warn(f"{report.unreadable} pictures could not be read and were left out of the measurement")


def _accuracy(report: Report) -> Accuracy:
    ranking = report.ranking
    return Accuracy(
        dataset=report.dataset,
        protocol=PROTOCOL,
        runtime=report.runtime,
        rank1=ranking.cmc(1),
        mAP=ranking.mean_ap,
        mINP=ranking.mean_inp,
        queries=int(ranking.valid.sum()),
    )
