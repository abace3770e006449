"""Galleries of embeddings and the search in them."""
