"""Test-time augmentation: the embedding of a crop together with that of its mirror image."""

import numpy as np
from jaxtyping import Float32, UInt8

from reidkit.manifest import Tta
from reidkit.types import Embedder, EmbedderSpec


class FlipEmbedder:
    """An embedder whose answer is the mean of two: of the crop, and of the crop mirrored left to right.

    This is how the field reports accuracy "with flip": the embeddings are averaged as the network gives them, and the
    cosine scales the mean (fast-reid, and the public baselines before it). The crops are mirrored before the engine
    sees them, so each picture is pre-processed once; fast-reid's goes through normalisation a second time, because its
    first pass changes the caller's tensor in place.

    Args:
        embedder: any open model. A crop costs two of its calls.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    @property
    def spec(self) -> EmbedderSpec:
        """That of the embedder inside, whose promise of unit length is kept."""
        return self._embedder.spec

    def embed(self, crops: UInt8[np.ndarray, "n height width 3"]) -> Float32[np.ndarray, "n dim"]:
        """Maps crops to embeddings; see `reidkit.types.Embedder`.

        Where two embeddings cancel each other out the mean is zero and stays so: it has no direction, and a ranking by
        cosine will name it.
        """
        # Turned before an engine has seen them; what are no crops the engine refuses.
        turned = np.ascontiguousarray(crops[:, :, ::-1]) if crops.ndim == 4 else crops
        seen, mirrored = self._embedder.embed(crops), self._embedder.embed(turned)
        mean = 0.5 * seen + 0.5 * mirrored  # halved first: the sum of two large values could leave float32
        if not self.spec.normalized:
            return mean
        lengths = np.linalg.norm(mean, axis=1, keepdims=True)
        return np.divide(mean, lengths, out=np.zeros_like(mean), where=lengths > 0)


def with_tta(embedder: Embedder, tta: Tta) -> Embedder:
    """The embedder with a test-time augmentation around it; for "none", the embedder."""
    return FlipEmbedder(embedder) if tta == "flip" else embedder
