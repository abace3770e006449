"""The second stage of an evaluation: embeddings of a data set become a report, under a protocol of the field."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from reidkit.evaluate.embedding import EmbeddedCrops, embed_split
from reidkit.evaluate.embedding_cache import EmbeddingCache
from reidkit.index.refinement import Refinement, refined
from reidkit.manifest import Tta
from reidkit.metrics.bootstrap import Interval, mean_interval
from reidkit.metrics.camera_pairs import CameraPairs, CameraPairScorer
from reidkit.metrics.distance import MEMORY, Metric
from reidkit.metrics.drawn import DrawnScorer
from reidkit.metrics.junk import labels_of, same_file
from reidkit.metrics.protocol import PROTOCOLS, Protocol
from reidkit.metrics.ranking import Ranking, RankScorer, Relevances, Scorer, has_match, walk
from reidkit.metrics.roc import Roc, RocScorer
from reidkit.runtime.pipeline import OnUnreadable
from reidkit.runtime.tta import with_tta
from reidkit.types import DISTRACTOR, UNKNOWN_CAMERA, Crop, Embedder, Precision, Progress, Split, no_progress

RANKS = (1, 5, 10)
FALSE_POSITIVE_RATES = (1e-4, 1e-3, 1e-2)


class Unreadable(NamedTuple):
    """Pictures that could not be decoded and were left out."""

    query: int
    gallery: int


@dataclass(frozen=True, slots=True)
class EmbeddedBy:
    """What made the embeddings; None where a file does not say.

    Attributes:
        model: name.
        runtime: engine.
        precision: of its arithmetic.
        device: that it ran on, in the engine's own words.
        tta: test-time augmentation.
    """

    model: str
    runtime: str | None = None
    precision: Precision | None = None
    device: str | None = None
    tta: Tta = "none"


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured of one model, on one engine, on one data set; fractions of 1.

    Attributes:
        dataset: format and name of the split.
        embedded: what made the embeddings.
        protocol: that the rankings follow.
        metric: distance between embeddings.
        refinement: of the distances, before they were ranked.
        rankings: query by query, without unreadable ones; one for each draw of the protocol, or one alone.
        roc: of all pairs that are not left out; None where galleries are drawn.
        camera_pairs: mAP from camera to camera; None where galleries are drawn or a camera is unknown.
        camera_names: how the data set itself writes a camera.
        crops: the queries, row by row.
        queries: of the data set, unreadable ones included.
        gallery: crops to be found, unreadable ones included.
        distractors: those of them that show nobody who is asked for.
        junk: crops that the data set itself takes out.
        unreadable: pictures that could not be decoded; they make the figures those of an easier data set.
        lost: queries that would be valid, but they or all their matches are unreadable.
        ranks: of the CMC, that were asked for.
        rates: false positive rates that were asked for.
    """

    dataset: str
    embedded: EmbeddedBy
    protocol: Protocol
    metric: Metric
    refinement: Refinement
    rankings: tuple[Ranking, ...]
    roc: Roc | None
    camera_pairs: CameraPairs | None
    camera_names: Mapping[int, str]
    crops: tuple[Crop, ...]
    queries: int
    gallery: int
    distractors: int
    junk: int
    unreadable: Unreadable
    lost: int
    ranks: tuple[int, ...] = RANKS
    rates: tuple[float, ...] = FALSE_POSITIVE_RATES

    @property
    def mean_ap(self) -> float:
        """MAP, a mean over the draws."""
        return self._mean(lambda ranking: ranking.mean_ap)

    @property
    def mean_inp(self) -> float:
        """MINP, a mean over the draws."""
        return self._mean(lambda ranking: ranking.mean_inp)

    def cmc(self, rank: int) -> float:
        """CMC at a rank, a mean over the draws."""
        return self._mean(lambda ranking: ranking.cmc(rank))

    def cmc_curve(self, ranks: int) -> Float64[np.ndarray, " ranks"]:
        """CMC at the ranks 1 to `ranks`, a mean over the draws."""
        return np.mean([ranking.cmc_curve(ranks) for ranking in self.rankings], axis=0)

    @property
    def valid(self) -> int:
        """Queries that were measured, in any draw."""
        return int(self._measured.sum())

    @property
    def unmatched(self) -> int:
        """Queries without a match, readable or not."""
        return self.queries - self.valid - self.lost

    @property
    def invalid(self) -> tuple[Crop, ...]:
        """The readable queries that were not measured, because nothing in the gallery is a match."""
        return tuple(crop for crop, measured in zip(self.crops, self._measured, strict=True) if not measured)

    def average_precision(self) -> Float64[np.ndarray, " query"]:
        """Of each query, a mean over the draws that it was valid in; NaN where there is none."""
        return self._per_query(lambda ranking: ranking.average_precision)

    def inverse_negative_penalty(self) -> Float64[np.ndarray, " query"]:
        """Of each query, a mean over the draws that it was valid in; NaN where there is none."""
        return self._per_query(lambda ranking: ranking.inverse_negative_penalty)

    def found_within(self, rank: int) -> Float64[np.ndarray, " query"]:
        """Share of the draws in which a query's first match is among the first `rank`; NaN where it was never valid."""
        return self._per_query(lambda ranking: np.where(ranking.valid, ranking.first_match <= rank, np.nan))

    def intervals(self) -> dict[str, Interval]:
        """95 % confidence intervals of "mAP", "mINP" and "rank-1" and so on, by bootstrap over the valid queries."""
        values = {"mAP": self.average_precision(), "mINP": self.inverse_negative_penalty()}
        values |= {f"rank-{rank}": self.found_within(rank) for rank in self.ranks}
        return {name: mean_interval(value[self._measured]) for name, value in values.items()}

    def true_positive_rates(self) -> dict[float, float] | None:
        """At each of the false positive rates that were asked for; None where galleries are drawn."""
        return None if self.roc is None else {rate: self.roc.tpr(rate) for rate in self.rates}

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as `reid evaluate --json` writes them."""
        rates = self.true_positive_rates()
        return {
            "model": self.embedded.model,
            "dataset": self.dataset,
            "mAP": self.mean_ap,
            "mINP": self.mean_inp,
            "rank": {str(rank): self.cmc(rank) for rank in self.ranks},
            "interval": {name: list(interval) for name, interval in self.intervals().items()},
            "spread": self._spread() if len(self.rankings) > 1 else None,
            "tpr": None if rates is None else {f"{fpr:g}": tpr for fpr, tpr in rates.items()},
            "camera_pairs": None if self.camera_pairs is None else self.camera_pairs.as_list(self.camera_names),
            "queries": {
                "total": self.queries,
                "valid": self.valid,
                "unmatched": self.unmatched,
                "lost": self.lost,
                "invalid": [crop.path.name for crop in self.invalid],
            },
            "gallery": {"total": self.gallery, "distractors": self.distractors},
            "junk": self.junk,
            "unreadable": self.unreadable._asdict(),
            "protocol": self.protocol.name,
            "draws": len(self.rankings),
            "metric": self.metric,
            "refinement": self.refinement.in_words(),
            "runtime": self.embedded.runtime,
            "precision": self.embedded.precision,
            "device": self.embedded.device,
            "tta": self.embedded.tta,
        }

    @property
    def _measured(self) -> np.ndarray:
        return np.any([ranking.valid for ranking in self.rankings], axis=0)

    def _mean(self, measure: Callable[[Ranking], float]) -> float:
        return float(np.mean([measure(ranking) for ranking in self.rankings]))

    def _spread(self) -> dict[str, float]:
        """Standard deviations over the draws."""
        values = {
            "mAP": [ranking.mean_ap for ranking in self.rankings],
            "rank-1": [ranking.cmc(1) for ranking in self.rankings],
        }
        return {name: float(np.std(each)) if np.ptp(each) else 0.0 for name, each in values.items()}

    def _per_query(self, values: Callable[[Ranking], np.ndarray]) -> np.ndarray:
        table = np.array([values(ranking) for ranking in self.rankings], dtype=np.float64)
        counts = np.isfinite(table).sum(axis=0)
        return np.divide(np.nansum(table, axis=0), counts, out=np.full(table.shape[1], np.nan), where=counts > 0)


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
    threads: int | None = None,
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
        threads: that decode.
        unreadable: what to do about a picture that cannot be decoded: "raise", or "skip" and count it.
        cache: of this embedder's answers under this `tta`.
        memory: bytes that ranking may take, beside the embeddings.
        progress: over the crops of both subsets, while they are embedded.
        rank_progress: over the queries, while they are ranked.

    Raises:
        DataError: the split has no query or no gallery, or no picture of one can be decoded.
        ImageError: a picture cannot be decoded and `unreadable` is "raise".
        InputError: no query has a match, or an embedding is not finite.
    """
    query, gallery = embed_split(
        with_tta(embedder, tta),
        split,
        batch_size=batch_size,
        threads=threads,
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
    relevances = Relevances(ql, gl, junk=protocol.junk, exclude=[same_file(_paths(query.crops), _paths(gallery.crops))])
    distances = refined(
        query.embeddings, gallery.embeddings, refinement, metric=metric, memory=memory, progress=progress
    )
    drawn = protocol.draw != "nothing"
    places = DrawnScorer(ql, gl, protocol) if drawn else RankScorer(len(ql.pids))
    roc = None if drawn else RocScorer(distances.shape, max_fpr=max(rates, default=0.0))
    known = UNKNOWN_CAMERA not in ql.camids and UNKNOWN_CAMERA not in gl.camids
    pairs = CameraPairScorer(ql, gl) if known and not drawn else None
    every: list[Scorer] = [scorer for scorer in (places, roc, pairs, *scorers) if scorer is not None]
    walk(distances, relevances, every, memory=memory, progress=progress)
    rankings = places.rankings() if isinstance(places, DrawnScorer) else (places.ranking(),)
    for ranking in rankings:
        ranking.require_valid()
    return Report(
        dataset=split.name,
        embedded=embedded,
        protocol=protocol,
        metric=metric,
        refinement=refinement,
        rankings=rankings,
        roc=None if roc is None else roc.roc(),
        camera_pairs=None if pairs is None else pairs.camera_pairs(),
        camera_names=split.camera_names,
        crops=query.crops,
        queries=len(split.query),
        gallery=len(split.gallery),
        distractors=sum(crop.pid == DISTRACTOR for crop in split.gallery),
        junk=len(split.junk),
        unreadable=Unreadable(len(query.unreadable), len(gallery.unreadable)),
        lost=_lost(query, gallery, split, protocol, rankings),
        ranks=tuple(ranks),
        rates=tuple(rates),
    )


def _lost(
    query: EmbeddedCrops, gallery: EmbeddedCrops, split: Split, protocol: Protocol, rankings: Sequence[Ranking]
) -> int:
    if not query.unreadable and not gallery.unreadable:
        return 0
    everything = Relevances(
        labels_of(split.query),
        labels_of(split.gallery),
        junk=protocol.junk,
        exclude=[same_file(_paths(split.query), _paths(split.gallery))],
    )
    measured = np.any([ranking.valid for ranking in rankings], axis=0)
    return int(has_match(everything).sum() - measured.sum())


def _paths(crops: Sequence[Crop]) -> list[Path]:
    return [crop.path for crop in crops]
