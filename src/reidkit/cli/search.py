"""`reid search`: for each query the nearest crops of a gallery, as a page and a contact sheet."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from reidkit.bundle import open_bundle
from reidkit.cli import console, options
from reidkit.cli.measuring import Settings, check_ranking, embed
from reidkit.cli.outputs import check_outputs, require_libraries, write_each
from reidkit.cli.pictures import Pictures, read_pictures
from reidkit.data import load_split
from reidkit.errors import ConfigError
from reidkit.evaluate import EmbeddedCrops
from reidkit.index import NearestScorer, Neighbors, nearest_by
from reidkit.index.refinement import refined
from reidkit.metrics.junk import same_camera, same_file
from reidkit.metrics.ranking import Ranking, RankScorer, Relevances, walk
from reidkit.report.contact_sheet import write_contact_sheet
from reidkit.report.results import UNKNOWN, Picture, SearchResults, pictures, scores
from reidkit.types import DISTRACTOR, Crop, Split


def search(
    bundle: options.BundlePath,
    out: Annotated[Path, typer.Option("--out", help="Page to write: .html; the sheet beside it: .png.")],
    query: Annotated[Path | None, typer.Option("--query", help="A picture, or a folder of pictures.")] = None,
    gallery: Annotated[Path | None, typer.Option("--gallery", help="A folder of pictures to search.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="A data set, instead of --query and --gallery.")] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Crops to show for each query.")] = 10,
    max_queries: Annotated[int, typer.Option("--max-queries", min=1, help="Queries to show on the page.")] = 60,
    runtime: options.Runtime = "onnxruntime",
    device: options.Device = None,
    precision: options.PrecisionOption = None,
    rebuild: options.Rebuild = False,
    metric: options.MetricName = "cosine",
    rerank: options.Rerank = False,
    k1: options.K1 = None,
    k2: options.K2 = None,
    weight: options.Weight = None,
    cached: options.Cached = True,
    batch: options.BatchSize = 32,
    workers: options.Workers = None,
    data_format: options.DataFormat = None,
    variant: options.DataVariant = None,
) -> None:
    """Search a gallery of pictures and write a page that needs nothing else to be looked at.

    Labels are read off a data set, or off file names such as 0002_c1s1_000451_03.jpg. Where they are known, junk (the
    same identity by the same camera, or named -1) is left out, frames are green and red, and the hardest queries come
    first.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError("Cannot write the page", got=out.name, expected="a name that ends in .html")
    settings = Settings(
        device=device,
        precision=options.parse_precision(precision),
        rebuild=rebuild,
        batch=batch,
        workers=workers,
        skip_unreadable=True,
        cached=cached,
        metric=metric,
        refinement=options.refinement(rerank=rerank, k1=k1, k2=k2, weight=weight),
    )
    sheet = out.with_suffix(".png")
    require_libraries("jinja2")
    check_outputs({"--out": out, "its sheet": sheet})
    opened = open_bundle(bundle)
    queries, pool, split = _sources(query, gallery, data, data_format, variant)
    check_ranking(split, settings)
    name = opened.manifest.name
    asked, searched, by = embed(opened, split, runtime, settings, model=name)
    labelled = queries.labelled and pool.labelled
    found, ranking = _search(asked, searched, settings, top, labelled)
    results = SearchResults(
        _pictures(queries, asked.crops, labelled),
        _pictures(pool, searched.crops, labelled),
        found,
        None if ranking is None else scores(ranking),
    )
    facts = {"model": name, "engine": by.runtime or UNKNOWN, **settings.unusual(), **_figures(ranking)}
    unreadable = len(asked.unreadable) + len(searched.unreadable)
    if unreadable:
        facts["unreadable pictures, left out"] = f"{unreadable:,}"
    title = f"{name}: search"
    write_each(
        [
            (out, lambda: _write_page(out, results, title, facts, max_queries)),
            (sheet, lambda: _write_sheet(sheet, results, title)),
        ]
    )


def _sources(
    query: Path | None, gallery: Path | None, data: Path | None, data_format: str | None, variant: str | None
) -> tuple[Pictures, Pictures, Split]:
    """What is asked and what is searched, with their names; and both as a split."""
    if data is None and query is not None and gallery is not None:
        options.refuse_idle({"--format": data_format, "--variant": variant}, "without --data")
        asked, searched = read_pictures(query), read_pictures(gallery)
        return asked, searched, Split("pictures", gallery, query=asked.crops, gallery=searched.crops)
    if data is None or query is not None or gallery is not None:
        raise ConfigError("Say what to search", expected="--query and --gallery, or --data alone")
    split = load_split(data, data_format, variant=variant)
    asked, searched = (
        Pictures(crops, True, split.pid_names, split.camera_names) for crops in (split.query, split.gallery)
    )
    return asked, searched, split


def _search(
    asked: EmbeddedCrops, searched: EmbeddedCrops, settings: Settings, top: int, labelled: bool
) -> tuple[Neighbors, Ranking | None]:
    """The nearest crops of every query and, where labels tell, where the right ones stand; in one pass."""
    own_file = same_file([crop.path for crop in asked.crops], [crop.path for crop in searched.crops])
    nobody = sum(crop.pid == DISTRACTOR for crop in asked.crops) if labelled else 0
    if nobody:
        # Nobody's query has no rank; then only the frames tell.
        console.warn(f"{nobody} of {len(asked.crops)} queries are distractors by their names (0000): nothing is scored")
    with console.progress_bar("searching") as progress:
        distances = refined(
            asked.embeddings, searched.embeddings, settings.refinement, metric=settings.metric, progress=progress
        )
        if not labelled or nobody:
            exclude = [own_file, *([same_camera(asked.labels, searched.labels)] if labelled else [])]
            return nearest_by(distances, top=top, exclude=exclude, progress=progress), None
        found, ranks = NearestScorer(distances.shape, top), RankScorer(len(asked.crops))
        relevances = Relevances(asked.labels, searched.labels, exclude=[own_file])
        walk(distances, relevances, [found, ranks], progress=progress)
    ranking = ranks.ranking()
    return found.neighbors(), ranking if ranking.valid.any() else None


def _pictures(source: Pictures, crops: Sequence[Crop], labelled: bool) -> list[Picture]:
    if not labelled:
        return [Picture(crop.path) for crop in crops]
    return pictures(crops, pid_names=source.pid_names, camera_names=source.camera_names)


def _figures(ranking: Ranking | None) -> dict[str, str]:
    if ranking is None:
        return {}
    return {
        "rank-1": f"{ranking.cmc(1):.1%}",
        "mAP": f"{ranking.mean_ap:.1%}",
        "mINP": f"{ranking.mean_inp:.1%}",
    }


def _write_page(path: Path, results: SearchResults, title: str, facts: dict[str, str], max_queries: int) -> None:
    from reidkit.report.search_page import write_search_page  # needs jinja2

    with console.progress_bar("drawing page") as progress:
        write_search_page(path, results, title=title, facts=facts, max_queries=max_queries, progress=progress)


def _write_sheet(path: Path, results: SearchResults, title: str) -> None:
    with console.progress_bar("drawing sheet") as progress:
        write_contact_sheet(path, results, title=title, progress=progress)
