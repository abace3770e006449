"""`reid evaluate`: how well a model finds people again."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from reidkit.atomic import output_file
from reidkit.bundle import open_bundle, record_accuracy
from reidkit.cli import console, options
from reidkit.data import load_split
from reidkit.errors import DataError
from reidkit.evaluate import PROTOCOL, RANKS, Report, embed_split, rank_embedded
from reidkit.manifest import Accuracy, Tta
from reidkit.runtime import load
from reidkit.runtime.flip import with_tta
from reidkit.types import EmbedderSpec


def evaluate(
    bundle: options.BundlePath,
    data: options.DataRoot,
    runtime: options.Runtime = "onnxruntime",
    device: options.Device = "cpu",
    metric: options.MetricName = "cosine",
    tta: Annotated[
        Tta, typer.Option("--tta", help="Test-time augmentation: flip embeds each crop and its mirror image.")
    ] = "none",
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
    # Opened first: a place that cannot be written to costs no embedding.
    with nullcontext() if json_file is None else output_file(json_file) as temporary:
        with console.progress_bar("embedding") as progress:
            query, gallery = embed_split(
                with_tta(embedder, tta),
                split,
                batch_size=batch,
                threads=threads,
                unreadable="skip" if skip_unreadable else "raise",
                progress=progress,
            )
        console.warn_unreadable((*query.unreadable, *gallery.unreadable))
        engine = embedder.spec.runtime
        with console.progress_bar("ranking") as progress:
            report = rank_embedded(
                query, gallery, split=split, metric=metric, runtime=engine, tta=tta, progress=progress
            )
        if temporary is not None:
            temporary.write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
    _print(report)
    if record:
        _require_whole(report)
        record_accuracy(opened, _accuracy(report, embedder.spec))
    return report


def _print(report: Report) -> None:
    ranking = report.ranking
    ranks = [f"rank-{rank}" for rank in RANKS]
    table = console.table(None, "data", "runtime", "tta", *ranks, "mAP", "mINP", numbers=len(ranks) + 2)
    values = [*(ranking.cmc(rank) for rank in RANKS), ranking.mean_ap, ranking.mean_inp]
    table.add_row(
        console.escape(report.dataset), report.runtime, report.tta, *(f"{100 * value:.2f}" for value in values)
    )
    console.out.print(table)
    text = (
        f"{report.valid} of {report.queries} queries are valid; {report.unmatched} without a match from another camera"
    )
    found = f"Gallery: {report.gallery} crops, {report.distractors} distractors"
    if any(report.unreadable):
        text += f", {report.lost} lost to unreadable pictures"
        found += f", {report.unreadable.gallery} unreadable"
    console.say(f"{text}. {found}; {report.junk} junk left out.")


def _require_whole(report: Report) -> None:
    """Refuses to record what was measured on a part of the data set: whoever reads it takes it for the whole."""
    if any(report.unreadable):
        raise DataError(
            "The accuracy is not recorded, because it was measured without the unreadable pictures",
            got=f"{report.unreadable.query} query and {report.unreadable.gallery} gallery pictures unreadable",
            expected="every picture of the data set",
            fix="repair the pictures, or leave --record out",
        )


def _accuracy(report: Report, spec: EmbedderSpec) -> Accuracy:
    ranking = report.ranking
    return Accuracy(
        dataset=report.dataset,
        protocol=PROTOCOL,
        metric=report.metric,
        runtime=report.runtime,
        precision=spec.precision,
        device=spec.device,
        rank1=ranking.cmc(1),
        mAP=ranking.mean_ap,
        mINP=ranking.mean_inp,
        queries=report.valid,
        gallery=report.gallery,
        tta=report.tta,
    )
