"""A data set is embedded, and what was embedded is ranked under a protocol of the field: that gives a report."""

from collections.abc import Sequence

from reidkit.evaluate.embedding import EmbeddedCrops, embed_split
from reidkit.evaluate.embedding_cache import EmbeddingCache
from reidkit.evaluate.report import FALSE_POSITIVE_RATES, RANKS, EmbeddedBy, Report, Unreadable
from reidkit.index.refinement import Refinement, refined
from reidkit.manifest import Tta
from reidkit.metrics.camera_pairs import CameraPairScorer
from reidkit.metrics.distance import MEMORY
from reidkit.metrics.drawn import DrawnScorer
from reidkit.metrics.junk import labels_of, same_file
from reidkit.metrics.prepared import Metric
from reidkit.metrics.protocol import PROTOCOLS, Protocol
from reidkit.metrics.ranking import RankScorer, Relevances, Scorer, has_match, walk
from reidkit.metrics.roc import RocScorer
from reidkit.runtime.pipeline import OnUnreadable
from reidkit.types import DISTRACTOR, UNKNOWN_CAMERA, Crop, Embedder, Progress, Split, no_progress


def evaluate(
    embedder: Embedder,
    split: Split,
    *,
    model: str = "model",
    protocol: Protocol = PROTOCOLS["market1501"],
    metric: Metric = "cosine",
    refinement: Refinement = Refinement(),
    tta: Tta = "none",
    batch_size: int = 32,
    workers: int | None = None,
    unreadable: OnUnreadable = "raise",
    cache: EmbeddingCache | None = None,
    memory: int = MEMORY,
    progress: Progress = no_progress,
    rank_progress: Progress = no_progress,
) -> Report:
    """Embeds the query and gallery crops of a split and ranks them: `embed_split`, then `rank_embedded`.

    Args:
        embedder: an open model.
        split: with query and gallery.
        model: its name, for the report.
        protocol: of the field; see `reidkit.metrics.protocol`.
        metric: distance between embeddings.
        refinement: query expansion, database augmentation, re-ranking.
        tta: test-time augmentation, put around the embedder here; "flip" adds the mirror image of each crop.
        batch_size: crops a call of the engine.
        workers: that decode, as in `reidkit.decoding.stream_crops`.
        unreadable: what to do about a picture that cannot be decoded: "raise", or "skip" and count it.
        cache: opened for this embedder and this `tta`.
        memory: bytes that ranking may take, beside the embeddings.
        progress: over the crops of both subsets, while they are embedded.
        rank_progress: over the queries, while they are ranked.

    Raises:
        ConfigError: there is no such augmentation, or the cache was opened for another embedder or `tta`.
        DataError: the split has no query or no gallery, or no picture of one can be decoded.
        ImageError: a picture cannot be decoded and `unreadable` is "raise".
        InputError: no query has a match, or an embedding is not finite.
    """
    query, gallery = embed_split(
        embedder,
        split,
        tta=tta,
        batch_size=batch_size,
        workers=workers,
        unreadable=unreadable,
        cache=cache,
        progress=progress,
    )
    spec = embedder.spec
    return rank_embedded(
        query,
        gallery,
        split=split,
        embedded=EmbeddedBy(model, spec.runtime, spec.precision, spec.device, tta),
        protocol=protocol,
        metric=metric,
        refinement=refinement,
        memory=memory,
        progress=rank_progress,
    )


def rank_embedded(
    query: EmbeddedCrops,
    gallery: EmbeddedCrops,
    *,
    split: Split,
    embedded: EmbeddedBy,
    dataset: str | None = None,
    protocol: Protocol = PROTOCOLS["market1501"],
    metric: Metric = "cosine",
    refinement: Refinement = Refinement(),
    ranks: Sequence[int] = RANKS,
    rates: Sequence[float] = FALSE_POSITIVE_RATES,
    memory: int = MEMORY,
    scorers: Sequence[Scorer] = (),
    progress: Progress = no_progress,
) -> Report:
    """Ranks the crops of a split that are embedded already.

    A query file that is also in the gallery is not ranked for itself, whatever its camera: being found at distance zero
    would teach nothing. The data sets of the field have no such file that the protocol does not leave out anyway.

    Args:
        query: embeddings to ask with.
        gallery: embeddings to be found.
        split: that both are of.
        embedded: what made the embeddings, for the report.
        dataset: what the report calls the split; None takes the split's own name.
        protocol: of the field.
        metric: distance between embeddings.
        refinement: query expansion, database augmentation, re-ranking.
        ranks: of the CMC, to report.
        rates: false positive rates, to report the true positive rates at.
        memory: bytes that this may take, beside the embeddings.
        scorers: that take note of something else on the same walk over the queries.
        progress: told by each step of the refinement, then the number of queries ranked.

    Raises:
        InputError: no query has a match, an embedding is not finite, or `memory` does not suffice.
    """
    ql, gl = query.labels, gallery.labels
    relevances = _relevances(query.crops, gallery.crops, protocol)
    distances = refined(
        query.embeddings, gallery.embeddings, refinement, metric=metric, memory=memory, progress=progress
    )
    drawn = protocol.draw != "nothing"
    places = DrawnScorer(ql, gl, protocol) if drawn else RankScorer(len(ql.pids))
    roc = None if drawn else RocScorer(ql, gl, max_fpr=max(rates, default=0.0), memory=memory)
    known = UNKNOWN_CAMERA not in ql.camids and UNKNOWN_CAMERA not in gl.camids
    pairs = CameraPairScorer(ql, gl) if known and not drawn else None
    every: list[Scorer] = [scorer for scorer in (places, roc, pairs, *scorers) if scorer is not None]
    walk(distances, relevances, every, memory=memory, progress=progress)
    rankings = places.rankings() if isinstance(places, DrawnScorer) else (places.ranking(),)
    for ranking in rankings:
        ranking.require_valid("in the gallery from another camera" if protocol.junk else "in the gallery")
    unmatched, lost = _not_to_be_measured(split, query, gallery, protocol, relevances)
    return Report(
        dataset=split.name if dataset is None else dataset,
        embedded=embedded,
        protocol=protocol,
        metric=metric,
        refinement=refinement,
        rankings=rankings,
        roc=None if roc is None else roc.roc(),
        camera_pairs=None if pairs is None else pairs.camera_pairs(),
        camera_names=split.camera_names,
        crops=query.crops,
        names=_names(query.crops, split),
        queries=len(split.query),
        unmatched_names=_names(unmatched, split),
        lost_names=_names(lost, split),
        gallery=len(split.gallery),
        gallery_per_draw=places.gallery if isinstance(places, DrawnScorer) else len(gallery.crops),
        distractors=sum(crop.pid == DISTRACTOR for crop in split.gallery),
        junk=len(split.junk),
        unreadable=Unreadable(len(query.unreadable), len(gallery.unreadable)),
        ranks=tuple(ranks),
        rates=tuple(rates),
    )


def _relevances(query: Sequence[Crop], gallery: Sequence[Crop], protocol: Protocol) -> Relevances:
    own = same_file([crop.path for crop in query], [crop.path for crop in gallery])
    return Relevances(labels_of(query), labels_of(gallery), junk=protocol.junk, exclude=[own])


def _not_to_be_measured(
    split: Split, query: EmbeddedCrops, gallery: EmbeddedCrops, protocol: Protocol, relevances: Relevances
) -> tuple[list[Crop], list[Crop]]:
    """Queries that have no match in the split, and those that have one there, but none among what could be read."""
    matched = measurable = _matched(query.crops, relevances)
    if (query.crops, gallery.crops) != (split.query, split.gallery):
        matched = _matched(split.query, _relevances(split.query, split.gallery, protocol))
    return (
        [crop for crop in split.query if crop not in matched],
        [crop for crop in split.query if crop in matched and crop not in measurable],
    )


def _matched(query: Sequence[Crop], relevances: Relevances) -> set[Crop]:
    return {crop for crop, match in zip(query, has_match(relevances).tolist(), strict=True) if match}


def _names(crops: Sequence[Crop], split: Split) -> tuple[str, ...]:
    """Paths below the data set, or whole where they are elsewhere."""
    folder = split.root.parent if split.root.is_file() else split.root
    return tuple(
        (crop.path.relative_to(folder) if crop.path.is_relative_to(folder) else crop.path).as_posix() for crop in crops
    )
