"""What is done to distances before they are ranked, as one option. Axes: `query` rows, `gallery` columns."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from reidkit.errors import ConfigError
from reidkit.index.expansion import augment_gallery, expand_queries
from reidkit.index.reranking import KReciprocal, rerank
from reidkit.metrics.distance import MEMORY, Distances, compare
from reidkit.metrics.prepared import Metric
from reidkit.types import Progress, no_progress


@dataclass(frozen=True, slots=True)
class Refinement:
    """Ways to better ranks that look at no label; the default is none of them.

    Attributes:
        database_augmentation: neighbours that move each gallery embedding; 0 leaves it. See `augment_gallery`.
        query_expansion: neighbours that move each query; 0 leaves it. See `expand_queries`.
        alpha: of both: neighbours weigh max(cosine, 0)**alpha. 0 is a plain mean.
        rerank: k-reciprocal re-ranking; None is not to.
    """

    database_augmentation: int = 0
    query_expansion: int = 0
    alpha: float = 0.0
    rerank: KReciprocal | None = None

    def __post_init__(self) -> None:
        counts = {"database augmentation": self.database_augmentation, "query expansion": self.query_expansion}
        for name, count in counts.items():
            if count < 0:
                raise ConfigError(
                    f"The neighbours of {name} cannot be negative", got=count, expected="0 (none) or more"
                )
        if not 0 <= self.alpha < math.inf:
            raise ConfigError("alpha of query expansion is out of range", got=self.alpha, expected="0 or above")
        if self.alpha and not any(counts.values()):
            raise ConfigError(
                "alpha weighs neighbours, and there are none to weigh",
                got=f"alpha {self.alpha:g}",
                fix="say how many neighbours query expansion or database augmentation shall take, or leave alpha out",
            )

    def in_words(self) -> str:
        """For reports: "none", or such as "DBA 5, AQE 5, k-reciprocal 20/6/0.3" or "αQE 5 (alpha 3)"."""  # noqa: RUF002 (its name)
        weighing = f" (alpha {self.alpha:g})" if self.alpha else ""
        said = []
        if self.database_augmentation:
            said.append(f"DBA {self.database_augmentation}{weighing}")
        if self.query_expansion:
            said.append(f"{'αQE' if self.alpha else 'AQE'} {self.query_expansion}{weighing}")  # noqa: RUF001
        if self.rerank is not None:
            said.append(f"k-reciprocal {self.rerank.k1}/{self.rerank.k2}/{self.rerank.weight:g}")
        return ", ".join(said) or "none"


def refined(
    query: Shaped[np.ndarray, "..."],
    gallery: Shaped[np.ndarray, "..."],
    refinement: Refinement = Refinement(),
    *,
    metric: Metric = "cosine",
    memory: int = MEMORY,
    progress: Progress = no_progress,
) -> Distances:
    """Distances of every query to every gallery embedding: the gallery augmented, queries expanded by it, re-ranked.

    Moved embeddings are kept beside the given ones, in float32. What re-ranking keeps: see `rerank`.

    Args:
        query: (n, dim), float16 or float32, to ask with.
        gallery: likewise, of the same width, to be found.
        refinement: what to do; nothing is plain `compare`.
        metric: to compare by.
        memory: bytes that each step may take, beside the embeddings and what it keeps.
        progress: told by each step in turn.

    Raises:
        InputError: as `compare`, `augment_gallery`, `expand_queries` and `rerank`.
    """
    if refinement.database_augmentation:
        gallery = augment_gallery(
            gallery,
            neighbors=refinement.database_augmentation,
            alpha=refinement.alpha,
            metric=metric,
            memory=memory,
            progress=progress,
        )
    if refinement.query_expansion:
        query = expand_queries(
            query,
            gallery,
            neighbors=refinement.query_expansion,
            alpha=refinement.alpha,
            metric=metric,
            memory=memory,
            progress=progress,
        )
    if refinement.rerank is None:
        return compare(query, gallery, metric)
    return rerank(query, gallery, refinement.rerank, metric=metric, memory=memory, progress=progress)
