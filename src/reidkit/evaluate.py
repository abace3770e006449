"""An embedder and a split give a report: CMC, mAP and mINP under the Market protocol."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from reidkit.errors import DataError, ImageError
from reidkit.manifest import Tta
from reidkit.metrics.distance import Metric
from reidkit.metrics.junk import Labels, labels_of, same_file
from reidkit.metrics.ranking import Ranking, has_match, rank_gallery
from reidkit.runtime.flip import with_tta
from reidkit.runtime.pipeline import OnUnreadable, embed_files
from reidkit.types import DISTRACTOR, Crop, Embedder, Progress, Split, no_progress

RANKS = (1, 5, 10)
PROTOCOL = "market1501"


@dataclass(frozen=True, slots=True)
class EmbeddedCrops:
    """Crops of one subset with their embeddings, row by row; `unreadable` names those that were left out."""

    crops: tuple[Crop, ...]
    embeddings: Float32[np.ndarray, "n dim"]
    unreadable: tuple[ImageError, ...] = ()

    @property
    def labels(self) -> Labels:
        """Identity and camera of each row."""
        return labels_of(self.crops)


class Unreadable(NamedTuple):
    """Pictures that could not be decoded and were left out."""

    query: int
    gallery: int


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured; fractions of 1.

    Attributes:
        dataset: format and name of the split.
        metric: distance between embeddings.
        runtime: engine that embedded.
        ranking: everything, query by query; without unreadable ones.
        queries: of the data set, unreadable ones included.
        gallery: crops to be found, unreadable ones included.
        distractors: those of them that show nobody who is asked for.
        junk: crops that the data set itself takes out.
        unreadable: pictures that could not be decoded; they make the figures those of an easier data set.
        lost: queries that would be valid, but they or all their matches are unreadable.
        tta: test-time augmentation that the embeddings were made with.
    """

    dataset: str
    metric: Metric
    runtime: str
    ranking: Ranking
    queries: int
    gallery: int
    distractors: int
    junk: int
    unreadable: Unreadable
    lost: int
    tta: Tta = "none"

    @property
    def valid(self) -> int:
        """Queries that were measured."""
        return int(self.ranking.valid.sum())

    @property
    def unmatched(self) -> int:
        """Queries without a match from another camera, readable or not."""
        return self.queries - self.valid - self.lost

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as `reid evaluate --json` writes them."""
        ranking = self.ranking
        return {
            "mAP": ranking.mean_ap,
            "mINP": ranking.mean_inp,
            "rank": {str(rank): ranking.cmc(rank) for rank in RANKS},
            "queries": {"total": self.queries, "valid": self.valid},
            "gallery": {"total": self.gallery, "distractors": self.distractors},
            "junk": self.junk,
            "unreadable": self.unreadable._asdict(),
            "dataset": self.dataset,
            "protocol": PROTOCOL,
            "metric": self.metric,
            "runtime": self.runtime,
            "tta": self.tta,
        }


def embed_crops(
    embedder: Embedder,
    crops: Sequence[Crop],
    *,
    batch_size: int = 32,
    threads: int | None = None,
    unreadable: OnUnreadable = "raise",
    progress: Progress = no_progress,
) -> EmbeddedCrops:
    """Embeds the crops of a subset; see `reidkit.runtime.pipeline.embed_files`."""
    extraction = embed_files(
        embedder,
        [crop.path for crop in crops],
        batch_size=batch_size,
        threads=threads,
        unreadable=unreadable,
        progress=progress,
    )
    return EmbeddedCrops(tuple(crops[i] for i in extraction.rows), extraction.embeddings, extraction.unreadable)


def evaluate(
    embedder: Embedder,
    split: Split,
    *,
    metric: Metric = "cosine",
    tta: Tta = "none",
    batch_size: int = 32,
    threads: int | None = None,
    unreadable: OnUnreadable = "raise",
    progress: Progress = no_progress,
    rank_progress: Progress = no_progress,
) -> Report:
    """Embeds the query and gallery crops of a split and ranks them: `embed_split`, then `rank_embedded`.

    Args:
        embedder: an open model.
        split: with query and gallery.
        metric: distance between embeddings.
        tta: test-time augmentation, put around the embedder here; "flip" adds the mirror image of each crop.
        batch_size: crops a call of the engine.
        threads: that decode.
        unreadable: what to do about a picture that cannot be decoded: "raise", or "skip" and count it.
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
        progress=progress,
    )
    runtime = embedder.spec.runtime
    return rank_embedded(query, gallery, split=split, metric=metric, runtime=runtime, tta=tta, progress=rank_progress)


def embed_split(
    embedder: Embedder,
    split: Split,
    *,
    batch_size: int = 32,
    threads: int | None = None,
    unreadable: OnUnreadable = "raise",
    progress: Progress = no_progress,
) -> tuple[EmbeddedCrops, EmbeddedCrops]:
    """Embeds the query and the gallery crops of a split; see `evaluate` for the arguments.

    Raises:
        DataError: the split has no query or no gallery, or no picture of one can be decoded.
        ImageError: a picture cannot be decoded and `unreadable` is "raise".
    """
    for name in ("query", "gallery"):
        if not split.subset(name):
            raise DataError(
                f"{split.root} has an empty {name}, so nothing can be measured",
                got=f"{len(split.query)} query and {len(split.gallery)} gallery crops (format {split.format})",
                expected="both",
                fix="`reid data inspect` shows what was read",
            )
    total = len(split.query) + len(split.gallery)
    query, gallery = (
        embed_crops(
            embedder,
            crops,
            batch_size=batch_size,
            threads=threads,
            unreadable=unreadable,
            progress=lambda done, _, before=before: progress(before + done, total),
        )
        for crops, before in ((split.query, 0), (split.gallery, len(split.query)))
    )
    return query, gallery


def rank_embedded(
    query: EmbeddedCrops,
    gallery: EmbeddedCrops,
    *,
    split: Split,
    metric: Metric,
    runtime: str,
    tta: Tta = "none",
    progress: Progress = no_progress,
) -> Report:
    """Ranks the crops of a split that are embedded already; `runtime` and `tta` say how, for the report.

    A query file that is also in the gallery is not ranked for itself, whatever its camera: being found at distance zero
    would teach nothing. The data sets of the field have no such file that the protocol does not leave out anyway.

    Raises:
        InputError: no query has a match, or an embedding is not finite.
    """
    exclude = [same_file(_paths(query.crops), _paths(gallery.crops))]
    ranking = rank_gallery(
        query.embeddings,
        gallery.embeddings,
        query.labels,
        gallery.labels,
        metric=metric,
        exclude=exclude,
        progress=progress,
    )
    ranking.require_valid()
    return Report(
        dataset=f"{split.format} {split.root.resolve().name}",
        metric=metric,
        runtime=runtime,
        ranking=ranking,
        queries=len(split.query),
        gallery=len(split.gallery),
        distractors=sum(crop.pid == DISTRACTOR for crop in split.gallery),
        junk=len(split.junk),
        unreadable=Unreadable(len(query.unreadable), len(gallery.unreadable)),
        lost=_valid_queries(split) - int(ranking.valid.sum()) if query.unreadable or gallery.unreadable else 0,
        tta=tta,
    )


def _valid_queries(split: Split) -> int:
    exclude = [same_file(_paths(split.query), _paths(split.gallery))]
    return int(has_match(labels_of(split.query), labels_of(split.gallery), exclude=exclude).sum())


def _paths(crops: Sequence[Crop]) -> list[Path]:
    return [crop.path for crop in crops]
