"""Distances, ranking under the field's protocols, and what is read off a ranking."""
