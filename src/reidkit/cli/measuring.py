"""What `evaluate` and `compare` do alike: embed a data set once, rank it as the options say."""

from collections.abc import Sequence
from dataclasses import dataclass

from reidkit.bundle import Bundle
from reidkit.cli import console
from reidkit.evaluate import (
    FALSE_POSITIVE_RATES,
    RANKS,
    EmbeddedBy,
    EmbeddedCrops,
    Report,
    embed_split,
    rank_embedded,
)
from reidkit.evaluate.embedding_cache import default_folder, open_cache
from reidkit.index.refinement import Refinement
from reidkit.manifest import Tta
from reidkit.metrics.distance import MEMORY, Metric
from reidkit.metrics.protocol import named_protocol
from reidkit.metrics.ranking import Scorer
from reidkit.runtime import RuntimeName, load
from reidkit.runtime.tta import with_tta
from reidkit.types import Split


@dataclass(frozen=True, slots=True)
class Settings:
    """How to embed and how to rank: the same for every model, engine and data set of a command.

    Attributes:
        tta: test-time augmentation.
        device: in the engine's own words.
        batch: crops a call of the engine.
        threads: that decode.
        skip_unreadable: leave out pictures that cannot be decoded.
        cached: embed the same pictures with the same model once.
        protocol: name, or None for the one of each data set.
        metric: distance between embeddings.
        refinement: of the distances.
        memory: bytes that ranking may take, beside the embeddings.
        ranks: of the CMC.
        rates: false positive rates.
    """

    tta: Tta = "none"
    device: str = "cpu"
    batch: int = 32
    threads: int | None = None
    skip_unreadable: bool = False
    cached: bool = True
    protocol: str | None = None
    metric: Metric = "cosine"
    refinement: Refinement = Refinement()
    memory: int = MEMORY
    ranks: tuple[int, ...] = RANKS
    rates: tuple[float, ...] = FALSE_POSITIVE_RATES


def embed(
    bundle: Bundle, split: Split, runtime: RuntimeName, settings: Settings, *, name: str | None = None
) -> tuple[EmbeddedCrops, EmbeddedCrops, EmbeddedBy]:
    """Query and gallery of a split, embedded by one model on one engine; and what made them.

    Args:
        bundle: the model.
        split: with query and gallery.
        runtime: the engine.
        settings: tta, device, batch, threads, skip_unreadable and cached are used.
        name: what to call the model; None takes the bundle's own.
    """
    embedder = load(bundle, runtime, device=settings.device)
    cache = open_cache(default_folder(), bundle, embedder.spec, settings.tta) if settings.cached else None
    with console.progress_bar("embedding") as progress:
        query, gallery = embed_split(
            with_tta(embedder, settings.tta),
            split,
            batch_size=settings.batch,
            threads=settings.threads,
            unreadable="skip" if settings.skip_unreadable else "raise",
            cache=cache,
            progress=progress,
        )
    console.warn_unreadable((*query.unreadable, *gallery.unreadable))
    spec = embedder.spec
    by = EmbeddedBy(name or bundle.manifest.name, spec.runtime, spec.precision, spec.device, settings.tta)
    return query, gallery, by


def rank_with_bar(
    query: EmbeddedCrops,
    gallery: EmbeddedCrops,
    split: Split,
    embedded: EmbeddedBy,
    settings: Settings,
    *,
    scorers: Sequence[Scorer] = (),
) -> Report:
    """The report on embedded crops, as the settings say; see `reidkit.evaluate.rank_embedded`."""
    with console.progress_bar("ranking") as progress:
        return rank_embedded(
            query,
            gallery,
            split=split,
            embedded=embedded,
            protocol=named_protocol(settings.protocol, data_format=split.format),
            metric=settings.metric,
            refinement=settings.refinement,
            ranks=settings.ranks,
            rates=settings.rates,
            memory=settings.memory,
            scorers=scorers,
            progress=progress,
        )
