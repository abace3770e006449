"""From picture files to embeddings: workers decode and resize ahead while the engine runs."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int64

from reidkit.decoding import stream_crops
from reidkit.errors import ConfigError, DataError, ImageError
from reidkit.types import Embedder, Progress, no_progress

OnUnreadable = Literal["raise", "skip"]


@dataclass(frozen=True, slots=True)
class Extraction:
    """Embeddings of the pictures that could be read.

    Attributes:
        embeddings: a row per readable picture, in the order of the files.
        rows: index into the files that were asked for, one per embedding.
        unreadable: what was wrong with the others.
    """

    embeddings: Float32[np.ndarray, "n dim"]
    rows: Int64[np.ndarray, " n"]
    unreadable: tuple[ImageError, ...]


def embed_files(
    embedder: Embedder,
    files: Sequence[Path],
    *,
    batch_size: int = 32,
    workers: int | None = None,
    unreadable: OnUnreadable = "raise",
    progress: Progress = no_progress,
) -> Extraction:
    """Embeds picture files.

    Memory holds the embeddings and about `6 * batch_size` crops: four batches decoded ahead, one that fills and one
    in the engine.

    Args:
        embedder: an open model.
        files: pictures, one crop each.
        batch_size: crops a call of the engine.
        workers: that decode, as in `reidkit.decoding.stream_crops`.
        unreadable: "raise" stops at the first picture that cannot be decoded; "skip" leaves it out and reports it.
        progress: called with the number of pictures done.

    Raises:
        ConfigError: `batch_size` is below 1.
        ReidkitError: a process that decoded died.
        ImageError: a picture cannot be decoded and `unreadable` is "raise".
        DataError: no file is left to embed.
    """
    if batch_size < 1:
        raise ConfigError("The batch size is out of range", got=batch_size, expected="1 or more")
    embeddings = np.empty((len(files), embedder.spec.dim), dtype=np.float32)
    rows: list[int] = []
    errors: list[ImageError] = []
    pending: list[np.ndarray] = []

    def flush() -> None:
        if pending:
            embeddings[len(rows) - len(pending) : len(rows)] = embedder.embed(np.stack(pending))
            pending.clear()

    # Closed also when something fails: the workers would decode on for as long as the traceback is held.
    with closing(stream_crops(files, embedder.spec.input, workers=workers, ahead=4 * batch_size)) as stream:
        for i, crop in enumerate(stream):
            if isinstance(crop, ImageError):
                if unreadable == "raise":
                    raise crop
                errors.append(crop)
            else:
                rows.append(i)
                pending.append(crop)
                if len(pending) == batch_size:
                    flush()
            progress(i + 1, len(files))
    flush()
    if not rows:
        raise DataError(
            "There is no picture to embed", got=f"{len(files)} files, {len(errors)} unreadable", expected="at least one"
        )
    return Extraction(embeddings[: len(rows)], np.array(rows, dtype=np.int64), tuple(errors))
