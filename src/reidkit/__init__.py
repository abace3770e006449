"""reidkit: re-identification from images to production.

import reidkit
embedder = reidkit.load("model.reid")
crops = np.stack([reidkit.load_crop(path, embedder.spec.input) for path in paths])
embeddings = embedder.embed(crops)          # float32, one row per picture
"""

from reidkit.bundle import Bundle, open_bundle
from reidkit.data import load_split
from reidkit.errors import ReidkitError
from reidkit.imaging import load_crop
from reidkit.index import nearest
from reidkit.runtime import load
from reidkit.types import Crop, Embedder, InputSpec, Split

__all__ = [
    "Bundle",
    "Crop",
    "Embedder",
    "InputSpec",
    "ReidkitError",
    "Split",
    "load",
    "load_crop",
    "load_split",
    "nearest",
    "open_bundle",
]

__version__ = "0.1.0"
