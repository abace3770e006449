"""An embedder and a split give a report: CMC, mAP and mINP under the Market protocol."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from reidkit.errors import DataError, ImageError
from reidkit.metrics.distance import Metric
from reidkit.metrics.ranking import Labels, Ranking, rank_gallery
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


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured; fractions of 1.

    Attributes:
        dataset: name of the split.
        metric: distance between embeddings.
        runtime: engine that embedded.
        ranking: everything, query by query.
        gallery: crops that were ranked.
        distractors: those of them that show nobody who is asked for.
        junk: crops that the data set itself takes out.
        unreadable: crops that could not be decoded.
    """

    dataset: str
    metric: Metric
    runtime: str
    ranking: Ranking
    gallery: int
    distractors: int
    junk: int
    unreadable: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as `reid evaluate --json` writes them."""
        ranking = self.ranking
        return {
            "mAP": ranking.mean_ap,
            "mINP": ranking.mean_inp,
            "rank": {str(rank): ranking.cmc(rank) for rank in RANKS},
            "queries": {"total": len(ranking.valid), "valid": int(ranking.valid.sum())},
            "gallery": {"total": self.gallery, "distractors": self.distractors},
            "junk": self.junk,
            "unreadable": self.unreadable,
            "dataset": self.dataset,
            "protocol": PROTOCOL,
            "metric": self.metric,
            "runtime": self.runtime,
        }


def labels_of(crops: Sequence[Crop]) -> Labels:
    """Identities and cameras of crops, as arrays."""
    pids = np.array([crop.pid for crop in crops], dtype=np.int64)
    return Labels(pids, np.array([crop.camid for crop in crops], dtype=np.int64))


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
    batch_size: int = 32,
    threads: int | None = None,
    unreadable: OnUnreadable = "raise",
    progress: Progress = no_progress,
) -> Report:
    """Embeds the query and gallery crops of a split and ranks them.

    Args:
        embedder: an open model.
        split: with query and gallery.
        metric: distance between embeddings.
        batch_size: crops a call of the engine.
        threads: that decode.
        unreadable: what to do about a picture that cannot be decoded: "raise", or "skip" and count it.
        progress: over the crops of both subsets.

    Raises:
        DataError: the split has no query or no gallery.
        ImageError: a picture cannot be decoded and `unreadable` is "raise".
        InputError: no query has a match, or an embedding is not finite.
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
    embedded = [
        embed_crops(
            embedder,
            crops,
            batch_size=batch_size,
            threads=threads,
            unreadable=unreadable,
            progress=lambda done, _, before=before: progress(before + done, total),
        )
        for crops, before in ((split.query, 0), (split.gallery, len(split.query)))
    ]
    return rank_embedded(*embedded, split=split, metric=metric, runtime=embedder.spec.runtime)


def rank_embedded(
    query: EmbeddedCrops, gallery: EmbeddedCrops, *, split: Split, metric: Metric, runtime: str
) -> Report:
    """Ranks crops that are embedded already.

    Raises:
        InputError: no query has a match, or an embedding is not finite.
    """
    ranking = rank_gallery(query.embeddings, gallery.embeddings, query.labels, gallery.labels, metric=metric)
    return Report(
        dataset=f"{split.format} {split.root.name}",
        metric=metric,
        runtime=runtime,
        ranking=ranking,
        gallery=len(gallery.crops),
        distractors=sum(crop.pid == DISTRACTOR for crop in gallery.crops),
        junk=len(split.junk),
        unreadable=len(query.unreadable) + len(gallery.unreadable),
    )
