"""What was measured of one model on one data set, and all that can be said of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from reidkit.errors import InputError
from reidkit.index.refinement import Refinement
from reidkit.manifest import Tta
from reidkit.metrics.bootstrap import Interval, mean_interval
from reidkit.metrics.camera_pairs import CameraPairs
from reidkit.metrics.prepared import Metric
from reidkit.metrics.protocol import Protocol
from reidkit.metrics.ranking import Ranking
from reidkit.metrics.roc import Roc, rate_text
from reidkit.types import Crop, Precision

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
