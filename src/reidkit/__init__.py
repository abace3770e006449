"""reidkit: re-identification from images to production."""

__version__ = "0.1.0"
