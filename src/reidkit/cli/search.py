"""`reid search`: for each query the nearest crops of a gallery, as a page and a contact sheet."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from reidkit.bundle import Bundle, open_bundle
from reidkit.cli import console, options
from reidkit.data import load_split
from reidkit.data.labels import crops_by_name, unlabelled_crops
from reidkit.errors import ConfigError, DataError
from reidkit.evaluate import EmbeddedCrops, embed_crops
from reidkit.imaging import image_files
from reidkit.index import nearest, same_camera, same_file
from reidkit.metrics.distance import Metric
from reidkit.metrics.ranking import Ranking, rank_gallery
from reidkit.report.contact_sheet import write_contact_sheet
from reidkit.report.results import Picture, QueryScore, SearchResults, pictures
from reidkit.runtime import load
from reidkit.types import DISTRACTOR, Crop


def search(
    bundle: options.BundlePath,
    out: Annotated[Path, typer.Option("--out", help="Page to write: .html; the sheet beside it: .png.")],
    query: Annotated[Path | None, typer.Option("--query", help="A picture, or a folder of pictures.")] = None,
    gallery: Annotated[Path | None, typer.Option("--gallery", help="A folder of pictures to search.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="A data set, instead of --query and --gallery.")] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Crops to show for each query.")] = 10,
    max_queries: Annotated[int, typer.Option("--max-queries", min=1, help="Queries to show on the page.")] = 60,
    runtime: options.Runtime = "onnxruntime",
    device: options.Device = "cpu",
    metric: options.MetricName = "cosine",
    batch: options.BatchSize = 32,
    threads: options.Threads = None,
    data_format: options.DataFormat = None,
    variant: options.DataVariant = None,
) -> None:
    """Search a gallery of pictures and write a page that needs nothing else to be looked at.

    Labels are read off a data set, or off file names such as 0002_c1s1_000451_03.jpg. Where they are known, junk (the
    same identity by the same camera) is left out, frames are green and red, and the hardest queries come first.
    """
    # Needs jinja2: found missing now, not after an hour of embedding.
    from reidkit.report.search_page import write_search_page

    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError("Cannot write the page", got=out.name, expected="a name that ends in .html")
    opened = open_bundle(bundle)
    sources = _sources(query, gallery, data, data_format, variant)
    embedder = load(opened, runtime, device=device)
    parts: list[EmbeddedCrops] = []
    for label, crops in (("embedding queries", sources.queries), ("embedding gallery", sources.gallery)):
        with console.progress_bar(label) as progress:
            part = embed_crops(embedder, crops, batch_size=batch, threads=threads, unreadable="skip", progress=progress)
        console.warn_unreadable(part.unreadable)
        parts.append(part)
    asked, searched = parts
    exclude = (
        same_file([crop.path for crop in asked.crops], [crop.path for crop in searched.crops]),
        *([same_camera(asked.crops, searched.crops)] if sources.labelled else []),
    )
    found = nearest(asked.embeddings, searched.embeddings, top=top, metric=metric, exclude=exclude)
    ranking = _ranking(asked, searched, metric) if sources.labelled else None
    results = SearchResults(
        _pictures(sources, asked.crops),
        _pictures(sources, searched.crops),
        found,
        None if ranking is None else _scores(ranking),
    )
    title = f"{opened.manifest.name}: search"
    facts = _facts(opened, embedder.spec.runtime, ranking)
    with console.progress_bar("drawing page") as progress:
        write_search_page(out, results, title=title, facts=facts, max_queries=max_queries, progress=progress)
    sheet = out.with_suffix(".png")
    with console.progress_bar("drawing sheet") as progress:
        write_contact_sheet(sheet, results, title=title, progress=progress)
    console.say(f"wrote {out} and {sheet}")


class _Sources(NamedTuple):
    queries: Sequence[Crop]
    gallery: Sequence[Crop]
    labelled: bool
    pid_names: Mapping[int, str]
    camera_names: Mapping[int, str]


def _sources(
    query: Path | None, gallery: Path | None, data: Path | None, data_format: str | None, variant: str | None
) -> _Sources:
    if data is not None and query is None and gallery is None:
        split = load_split(data, data_format, variant=variant)
        sources = _Sources(split.query, split.gallery, True, split.pid_names, split.camera_names)
    elif data is None and query is not None and gallery is not None:
        files = [_files("query", query), _files("gallery", gallery)]
        named = [crops_by_name(paths) for paths in files]
        asked, searched = (crops or unlabelled_crops(paths) for crops, paths in zip(named, files, strict=True))
        sources = _Sources(asked, searched, None not in named, {}, {})
    else:
        raise ConfigError("Say what to search", expected="--query and --gallery, or --data alone")
    for name, crops in (("query", sources.queries), ("gallery", sources.gallery)):
        if not crops:
            raise DataError(f"The {name} is empty", got="0 pictures", expected="at least one")
    return sources


def _files(name: str, root: Path) -> list[Path]:
    if not root.exists():
        raise DataError(f"No such file or folder: {root}", fix=f"check --{name}")
    files = image_files(root)
    if not files:
        raise DataError(f"The {name} is empty: {root} holds no pictures", expected="JPEG, PNG or other picture files")
    return files


def _ranking(asked: EmbeddedCrops, searched: EmbeddedCrops, metric: Metric) -> Ranking | None:
    # A query that is known to be nobody has no rank; then only the frames tell.
    if any(crop.pid == DISTRACTOR for crop in asked.crops):
        return None
    ranking = rank_gallery(asked.embeddings, searched.embeddings, asked.labels, searched.labels, metric=metric)
    return ranking if ranking.valid.any() else None


def _scores(ranking: Ranking) -> list[QueryScore | None]:
    pairs = zip(ranking.average_precision.tolist(), ranking.first_match.tolist(), strict=True)
    return [QueryScore(precision, first) if first else None for precision, first in pairs]


def _pictures(sources: _Sources, crops: Sequence[Crop]) -> list[Picture]:
    if not sources.labelled:
        return [Picture(crop.path) for crop in crops]
    return pictures(crops, pid_names=sources.pid_names, camera_names=sources.camera_names)


def _facts(bundle: Bundle, runtime: str, ranking: Ranking | None) -> dict[str, str]:
    facts = {"model": bundle.manifest.name, "engine": runtime}
    if ranking is not None:
        facts |= {
            "rank-1": f"{ranking.cmc(1):.1%}",
            "mAP": f"{ranking.mean_ap:.1%}",
            "mINP": f"{ranking.mean_inp:.1%}",
        }
    return facts
