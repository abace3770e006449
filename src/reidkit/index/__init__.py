"""Galleries of embeddings and the search in them."""

from reidkit.index.exact import NO_NEIGHBOR, Exclude, Neighbors, nearest, same_camera, same_file

__all__ = ["NO_NEIGHBOR", "Exclude", "Neighbors", "nearest", "same_camera", "same_file"]
