"""The first stage of an evaluation: the crops of a data set become embeddings, once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from reidkit.errors import ConfigError, DataError, ImageError
from reidkit.evaluate.embedding_cache import EmbeddingCache
from reidkit.manifest import Tta
from reidkit.metrics.junk import Labels, labels_of
from reidkit.runtime.pipeline import Extraction, OnUnreadable, embed_files
from reidkit.runtime.tta import MultiViewEmbedder, with_tta
from reidkit.types import Crop, Embedder, Progress, Split, no_progress


@dataclass(frozen=True, slots=True)
class EmbeddedCrops:
    """Crops of one subset with their embeddings, row by row; `unreadable` names those that were left out."""

    crops: tuple[Crop, ...]
    embeddings: Float[np.ndarray, "n dim"]
    unreadable: tuple[ImageError, ...] = ()

    @property
    def labels(self) -> Labels:
        """Identity and camera of each row."""
        return labels_of(self.crops)


def embed_crops(
    embedder: Embedder,
    crops: Sequence[Crop],
    *,
    tta: Tta = "none",
    batch_size: int = 32,
    workers: int | None = None,
    unreadable: OnUnreadable = "raise",
    cache: EmbeddingCache | None = None,
    progress: Progress = no_progress,
) -> EmbeddedCrops:
    """Embeds the crops of a subset; see `reidkit.runtime.pipeline.embed_files`.

    Args:
        embedder: an open model.
        crops: to embed.
        tta: test-time augmentation, put around the embedder here.
        batch_size: crops a call of the engine.
        workers: that decode, as in `reidkit.decoding.stream_crops`.
        unreadable: what to do about a picture that cannot be decoded: "raise", or "skip" and name it.
        cache: opened for this embedder and this `tta`; the same crops, byte for byte, are embedded once.
        progress: over the crops.

    Raises:
        ConfigError: there is no such augmentation, or the cache was opened for another embedder or `tta`.
        DataError: there is nothing to embed.
        ImageError: a picture cannot be decoded and `unreadable` is "raise".
    """
    augmented = with_tta(embedder, tta)
    if cache is not None:
        _check_cache(cache, embedder, tta)
    files = [crop.path for crop in crops]

    def extract() -> Extraction:
        return embed_files(
            augmented, files, batch_size=batch_size, workers=workers, unreadable=unreadable, progress=progress
        )

    extraction = extract() if cache is None else cache.fetch(files, extract, unreadable=unreadable)
    progress(len(files), len(files))  # also where nothing had to be embedded
    return EmbeddedCrops(tuple(crops[i] for i in extraction.rows), extraction.embeddings, extraction.unreadable)


def _check_cache(cache: EmbeddingCache, embedder: Embedder, tta: Tta) -> None:
    """Refuses a cache of other answers. Whose weights an embedder has it does not say: that is the caller's word."""
    if isinstance(embedder, MultiViewEmbedder) or tta != cache.tta or embedder.spec != cache.spec:
        raise ConfigError(
            "The cache was opened for another embedder or another test-time augmentation",
            got=f"{type(embedder).__name__}, tta {tta!r}: {embedder.spec}",
            expected=f"a plain embedder, tta {cache.tta!r}: {cache.spec}",
            fix="open the cache with the embedder's spec and the same tta; `tta` puts the augmentation around it",
        )


def embed_split(
    embedder: Embedder,
    split: Split,
    *,
    tta: Tta = "none",
    batch_size: int = 32,
    workers: int | None = None,
    unreadable: OnUnreadable = "raise",
    cache: EmbeddingCache | None = None,
    progress: Progress = no_progress,
) -> tuple[EmbeddedCrops, EmbeddedCrops]:
    """Embeds the query and the gallery crops of a split; see `embed_crops` for the arguments.

    Raises:
        ConfigError: as `embed_crops`.
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
            tta=tta,
            batch_size=batch_size,
            workers=workers,
            unreadable=unreadable,
            cache=cache,
            progress=lambda done, _, before=before: progress(before + done, total),
        )
        for crops, before in ((split.query, 0), (split.gallery, len(split.query)))
    )
    return query, gallery
