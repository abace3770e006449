"""The second stage of an evaluation: embeddings of a data set become a report, under a protocol of the field."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from reidkit.errors import InputError
from reidkit.evaluate.embedding import EmbeddedCrops, embed_split
from reidkit.evaluate.embedding_cache import EmbeddingCache
from reidkit.index.refinement import Refinement, refined
from reidkit.manifest import Tta
from reidkit.metrics.bootstrap import Interval, mean_interval
from reidkit.metrics.camera_pairs import CameraPairs, CameraPairScorer
from reidkit.metrics.distance import MEMORY
from reidkit.metrics.drawn import DrawnScorer
from reidkit.metrics.junk import labels_of, same_file
from reidkit.metrics.prepared import Metric
from reidkit.metrics.protocol import PROTOCOLS, Protocol
from reidkit.metrics.ranking import Ranking, RankScorer, Relevances, Scorer, has_match, walk
from reidkit.metrics.roc import Roc, RocScorer, rate_text
from reidkit.runtime.pipeline import OnUnreadable
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
        names: of the queries, row by row: their paths below the data set.
        queries: of the data set, unreadable ones included.
        unmatched_names: queries that have no match in the data set, unreadable ones included.
        lost_names: queries that have a match, but they or all their matches are unreadable.
        gallery: crops to be found, unreadable ones included.
        gallery_per_draw: readable crops that stand to be found in one draw, distractors included.
        distractors: crops to be found that show nobody who is asked for.
        junk: crops that the data set itself takes out.
        unreadable: pictures that could not be decoded; they make the figures those of an easier data set.
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
    names: tuple[str, ...]
    queries: int
    unmatched_names: tuple[str, ...]
    lost_names: tuple[str, ...]
    gallery: int
    gallery_per_draw: int
    distractors: int
    junk: int
    unreadable: Unreadable
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
    def draws(self) -> int:
        """Rankings that the measures are means over."""
        return len(self.rankings)

    @property
    def valid(self) -> int:
        """Queries that were measured, in any draw."""
        return int(self._measured.sum())

    @property
    def valid_per_draw(self) -> int:
        """Queries that were measured in one draw, on average."""
        return round(float(np.mean([ranking.valid.sum() for ranking in self.rankings])))

    @property
    def unmatched(self) -> int:
        """Queries that have no match in the data set."""
        return len(self.unmatched_names)

    @property
    def lost(self) -> int:
        """Queries that unreadable pictures have taken from the measurement."""
        return len(self.lost_names)

    @property
    def never_asked(self) -> int:
        """Queries that have a match, but in no draw of the gallery: another crop of theirs was drawn each time."""
        return self.queries - self.valid - self.unmatched - self.lost

    def average_precision(self) -> Float64[np.ndarray, " query"]:
        """Of each query, a mean over the draws that it was valid in; NaN where there is none."""
        table = self._by_draw("mAP")
        valid = np.isfinite(table)
        sums = np.where(valid, table, 0).sum(axis=0)
        return np.divide(sums, valid.sum(axis=0), out=np.full(table.shape[1], np.nan), where=self._measured)

    def shares(self, measure: str) -> Float64[np.ndarray, " measured"]:
        """What each measured query contributes: the plain mean of these is the measure that is reported.

        With one draw these are the values of the queries. With several, a query weighs more in a draw that has fewer
        valid ones.

        Args:
            measure: "mAP", "mINP", "rank-1" and so on.

        Raises:
            InputError: there is no such measure.
        """
        table = self._by_draw(measure)
        weights = self.valid / np.isfinite(table).sum(axis=1, keepdims=True)
        return np.nan_to_num(table * weights).mean(axis=0)[self._measured]

    def interval(self, measure: str) -> Interval:
        """95 % confidence interval of a measure, by bootstrap over the measured queries.

        Args:
            measure: "mAP", "mINP", "rank-1" and so on.

        Raises:
            InputError: there is no such measure.
        """
        return mean_interval(self.shares(measure))

    def true_positive_rates(self) -> dict[float, float] | None:
        """At each of the false positive rates that were asked for; None where galleries are drawn."""
        return None if self.roc is None else {rate: self.roc.tpr(rate) for rate in self.rates}

    def spread(self) -> dict[str, float]:
        """Standard deviations of "mAP" and "rank-1" over the draws."""
        values = {
            "mAP": [ranking.mean_ap for ranking in self.rankings],
            "rank-1": [ranking.cmc(1) for ranking in self.rankings],
        }
        return {name: float(np.std(each)) if np.ptp(each) else 0.0 for name, each in values.items()}

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as `reid evaluate --json` writes them."""
        rates = self.true_positive_rates()
        measures = ("mAP", "mINP", *(f"rank-{rank}" for rank in self.ranks))
        return {
            "model": self.embedded.model,
            "dataset": self.dataset,
            "mAP": self.mean_ap,
            "mINP": self.mean_inp,
            "rank": {str(rank): self.cmc(rank) for rank in self.ranks},
            "interval": {name: list(self.interval(name)) for name in measures},
            "spread": self.spread() if self.draws > 1 else None,
            "tpr": None if rates is None else {rate_text(fpr): tpr for fpr, tpr in rates.items()},
            "camera_pairs": None if self.camera_pairs is None else self.camera_pairs.as_list(self.camera_names),
            "queries": {
                "total": self.queries,
                "valid": self.valid,
                "valid_per_draw": self.valid_per_draw,
                "unmatched": self.unmatched,
                "lost": self.lost,
                "never_asked": self.never_asked,
                "unmatched_names": list(self.unmatched_names),
                "lost_names": list(self.lost_names),
            },
            "gallery": {"total": self.gallery, "per_draw": self.gallery_per_draw, "distractors": self.distractors},
            "junk": self.junk,
            "unreadable": self.unreadable._asdict(),
            "protocol": self.protocol.name,
            "draws": self.draws,
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

    def _by_draw(self, measure: str) -> Float64[np.ndarray, "draws query"]:
        """A measure of each query in each draw; NaN where it is not valid."""
        if measure == "mAP":
            return np.array([ranking.average_precision for ranking in self.rankings])
        if measure == "mINP":
            return np.array([ranking.inverse_negative_penalty for ranking in self.rankings])
        rank = measure.removeprefix("rank-")
        if not rank.isdecimal():
            raise InputError("There is no such measure", got=measure, expected="mAP, mINP, rank-1, rank-2 and so on")
        return np.array([np.where(each.valid, each.first_match <= int(rank), np.nan) for each in self.rankings])


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
