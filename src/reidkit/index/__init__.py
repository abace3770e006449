"""Galleries of embeddings and the search in them."""

from reidkit.index.exact import NO_NEIGHBOR, Neighbors, nearest
from reidkit.metrics.junk import Exclude, Labels, labels_of, same_camera, same_file

__all__ = ["NO_NEIGHBOR", "Exclude", "Labels", "Neighbors", "labels_of", "nearest", "same_camera", "same_file"]
