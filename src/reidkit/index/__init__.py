"""Galleries of embeddings: the search in them, and what makes its ranks better."""

from reidkit.index.exact import NO_NEIGHBOR, NearestScorer, Neighbors, nearest, nearest_by
from reidkit.index.expansion import augment_gallery, expand_queries
from reidkit.index.refinement import Refinement, refined
from reidkit.index.reranking import KReciprocal, rerank
from reidkit.metrics.junk import Exclusion, Labels, labels_of, same_camera, same_file

__all__ = [
    "NO_NEIGHBOR",
    "Exclusion",
    "KReciprocal",
    "Labels",
    "NearestScorer",
    "Neighbors",
    "Refinement",
    "augment_gallery",
    "expand_queries",
    "labels_of",
    "nearest",
    "nearest_by",
    "refined",
    "rerank",
    "same_camera",
    "same_file",
]
