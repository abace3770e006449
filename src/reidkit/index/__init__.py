"""Galleries of embeddings: the search in them, and what makes its ranks better."""

from reidkit.index.exact import NO_NEIGHBOR, NearestScorer, Neighbors, nearest, nearest_by
from reidkit.index.expansion import augment_gallery, expand_queries
from reidkit.index.refinement import Refinement, refined
from reidkit.index.reranking import KReciprocal, rerank

__all__ = [
    "NO_NEIGHBOR",
    "KReciprocal",
    "NearestScorer",
    "Neighbors",
    "Refinement",
    "augment_gallery",
    "expand_queries",
    "nearest",
    "nearest_by",
    "refined",
    "rerank",
]
